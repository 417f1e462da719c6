"""Is the change of held-out margins foreseen when training pairs are left out? Against heads retrained by PyTorch.

SmolLM2's features of every third training pair of `persona:k2` and of all its held-out pairs. 50 random sets of 5 to
10% of the pairs are dropped, and 50 targeted ones: the pairs that contribute most, or least, to the margin of one
held-out pair. The peer is a `torch.nn.Linear` that starts at the model's own rows, trained from the loss with
`torch.optim`; of the vocabulary it has the responses and 254 other tokens, which changes no margin, as one set with all
49,152 shows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from benchmarks.harness import Row
from benchmarks.packing import model
from margincast.data import load_pairs
from margincast.features import extract_features
from margincast.frozen.attribution.contributions import attribute
from margincast.frozen.attribution.counterfactual import direct_change, rerun
from margincast.frozen.attribution.edits import Edit, drop, edited
from margincast.frozen.attribution.sensitivity import reweighed, sensitivity
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.tokens import head_of
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet

SETS, WORDS, RESAMPLES = 50, 256, 2000
RUNS: dict[str, tuple[Recipe, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "momentum, full batch": (
        Recipe(train="head", optimizer=GradientDescent(5.0, 0.9), max_grad_norm=0.0, eval_steps=60),
        lambda p: torch.optim.SGD(p, 5.0, momentum=0.9),
    ),
    "AdamW, batches of 32": (
        Recipe(train="head", optimizer=AdamW(1e-3), eval_steps=60),
        lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.0),
    ),
}


def rows() -> Iterator[Row]:
    features, words = problem()
    for name, (recipe, make) in RUNS.items():
        changes = changes_of(features, words, recipe, make)
        head, seconds = changes.real, changes.seconds
        yield from compared(
            f"{name}: re-run", "PyTorch head", changes.rerun, head, ">= 0.99", seconds["rerun"], seconds
        )
        # A derivative cannot foresee in which order other data is drawn.
        target = ">= 0.9" if recipe.rule.whole_batch else ""
        yield from compared(
            f"{name}: first order", "PyTorch head", changes.first, head, target, seconds["first"], seconds
        )
        yield from compared(
            f"{name}: contributions", "PyTorch head", changes.direct, head, "", seconds["direct"], seconds
        )
        if not recipe.rule.whole_batch:
            kept = changes.kept
            yield from compared(f"{name}: first order", "same batches", changes.first, kept, "", seconds["first"], {})
            yield from compared(f"{name}: same batches", "PyTorch head", kept, head, "", seconds["kept"], seconds)
    yield whole_vocabulary(features)


@dataclass(frozen=True)
class Changes:
    """Changes of held-out margins, (sets, M) each, and the seconds they took.

    real: of the retrained heads;  rerun: of the re-run;  first, direct: predicted through the run, and as minus the
    contributions;  kept: re-run in the batches of the unedited run
    """

    real: Tensor
    rerun: Tensor
    first: Tensor
    direct: Tensor
    kept: Tensor
    seconds: dict[str, float]


def problem() -> tuple[Features, Tensor]:
    """Features, and the rows of a part of the vocabulary, the responses first, (WORDS, hidden) float64."""
    pairs = load_pairs("persona:k2", persona_dir=Path(os.environ["MARGINCAST_PERSONA_DIR"]))
    train, heldout = pairs.split(holdout=0.1, seed=1234)
    features = extract_features("smollm2", PairSet(train.pairs[::3]), heldout)
    unembedding, _ = head_of(model())
    others = torch.randperm(len(unembedding), generator=torch.Generator().manual_seed(0))
    others = others[~torch.isin(others, features.tokens)][: WORDS - len(features.tokens)]
    return features, torch.cat([unembedding[features.tokens], unembedding[others]]).double()


def changes_of(
    features: Features, words: Tensor, recipe: Recipe, make: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> Changes:
    _, heldout = token_spaces(features, recipe)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    sensitive = timed("first", lambda: sensitivity(features, recipe))
    found = timed("direct", lambda: attribute(features, recipe)[60])
    edits = sets_of(found.contributions(heldout))
    before, ours = retrained(features, words, recipe, make), sensitive.values

    def each(name: str, change: Callable[[Edit], Tensor]) -> Tensor:
        stacked: Tensor = timed(name, lambda: torch.stack([change(edit) for edit in edits]))
        return stacked

    return Changes(
        real=each("real", lambda edit: retrained(edited(features, edit), words, recipe, make) - before),
        rerun=each("rerun", lambda edit: rerun(features, edit, recipe).heldout.margins[-1] - ours),
        first=each("first", sensitive.change),
        direct=each("direct", lambda edit: direct_change(found, heldout, edit)),
        kept=each("kept", lambda edit: reweighed(features, edit, recipe) - ours),
        seconds=seconds,
    )


def sets_of(contributions: Tensor) -> list[Edit]:
    """SETS random and SETS targeted sets. contributions: (M, N)"""
    generator = torch.Generator().manual_seed(0)
    targets, pairs = contributions.shape
    sizes = torch.randint(pairs // 20, pairs // 10, (2 * SETS,), generator=generator).tolist()
    edits = [drop(pairs, torch.randperm(pairs, generator=generator)[:size]) for size in sizes[:SETS]]
    for number, size in enumerate(sizes[SETS:]):
        target = int(torch.randint(targets, (), generator=generator))
        order = contributions[target].argsort(descending=number % 2 == 0)
        edits.append(drop(pairs, order[:size]))
    return edits


def retrained(
    features: Features, words: Tensor, recipe: Recipe, make: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> Tensor:
    """Held-out margins, (M,), of a linear head over `words` that PyTorch trains with DPO's loss."""
    train, heldout = token_spaces(features, recipe, words.dtype)
    head = torch.nn.Linear(words.shape[1], len(words), bias=False, dtype=words.dtype)
    head.weight.data.copy_(words)
    optimizer = make([head.weight])

    def log_ratio(logits: Tensor, space: Any) -> Tensor:
        logps = log_softmax(logits, dim=-1)
        return (logps.gather(1, space.chosen[:, None]) - logps.gather(1, space.rejected[:, None])).squeeze(1)

    with torch.no_grad():
        reference = log_ratio(head(train.features), train)
        before = log_ratio(head(heldout.features), heldout)
    for batch in recipe.batches(len(train)):
        space = train.rows(batch.rows)
        optimizer.zero_grad()
        margins = recipe.beta * (log_ratio(head(space.features), space) - reference[batch.rows])
        (batch.weights.to(margins) * -logsigmoid(margins)).sum().backward()
        if recipe.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([head.weight], recipe.max_grad_norm)
        optimizer.step()
    with torch.no_grad():
        return recipe.beta * (log_ratio(head(heldout.features), heldout) - before)


def compared(
    name: str, peer: str, ours: Tensor, theirs: Tensor, target: str, seconds: float, peers: dict[str, float]
) -> Iterator[Row]:
    """Spearman of two changes, (sets, M) each: of their means over sets, and of the pairs' changes within each set."""
    agrees = float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-6 if name.endswith("re-run") else None
    for kind, some in (("random", slice(0, SETS)), ("targeted", slice(SETS, 2 * SETS))):
        a, b = ours[some].numpy(), theirs[some].numpy()
        low, high = bootstrap(a.mean(axis=1), b.mean(axis=1))
        rho = float(spearmanr(a.mean(axis=1), b.mean(axis=1)).statistic)
        title, spent = f"{name}, {kind}", (seconds, peers.get("real"))
        yield Row(f"{title}, set means", peer, agrees, rho, low, high, target, *spent)
        each = [float(spearmanr(x, y).statistic) for x, y in zip(a, b, strict=True)]
        yield Row(f"{title}, pairs", peer, agrees, float(np.median(each)), min(each), max(each), target, *spent)


def bootstrap(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the 95% interval of Spearman's correlation over sets."""
    draws = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    low, high = np.quantile([spearmanr(a[draw], b[draw]).statistic for draw in draws], (0.025, 0.975))
    return float(low), float(high)


def whole_vocabulary(features: Features) -> Row:
    """One dropped set, 5 steps, with all rows of the model's head in float32: the largest error, relative."""
    unembedding, _ = head_of(model())
    recipe = replace(RUNS["momentum, full batch"][0], max_steps=5)
    edit = drop(len(features.train.pairs), range(0, len(features.train.pairs), 12))
    others = ~torch.isin(torch.arange(len(unembedding)), features.tokens)
    words = torch.cat([unembedding[features.tokens], unembedding[others]])
    start = time.perf_counter()
    real = retrained(edited(features, edit), words.float(), recipe, RUNS["momentum, full batch"][1])
    middle = time.perf_counter()
    ours = rerun(features, edit, recipe).heldout.margins[-1]
    gap, end = float((ours - real.double()).abs().max() / ours.abs().max()), time.perf_counter()
    peer = f"PyTorch head of {len(words):,} float32 rows"
    name = "5 steps without every 12th pair: largest error of the re-run"
    return Row(name, peer, gap <= 1e-3, gap, gap, gap, "<= 1e-3", end - middle, middle - start)
