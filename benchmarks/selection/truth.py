"""Does the forecast rank the rules as true runs do?

    python -m benchmarks.selection.truth              every setting and seed that is not kept yet, then the table
    python -m benchmarks.selection.truth flips:0      some, setting:seed

A setting is data, a recipe of true runs and the share that is kept. By the forecast of the unembedding's run with the
same recipe every rule is ranked; the first, the last, random and two between are then trained for real, and all pairs
beside them. A run is kept in the cache, so that an interrupted call goes on. The seed draws flips, parts and batches.

Twin noise is the difference of two random parts' true runs, of the two seeds. Needs $MARGINCAST_PERSONA_DIR, and for
chat pairs $MARGINCAST_DATA_DIR (`benchmarks.attribution.chat`).
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from scipy.stats import kendalltau
from torch import Tensor

from benchmarks.attribution.chat import dpo_en, hh_helpful, turned
from benchmarks.attribution.planted import cache, drawn
from benchmarks.attribution.true_runs import cut
from benchmarks.packing import model, personas
from margincast.features import features_of
from margincast.features.positions import Positions, head_of, token_features
from margincast.passes.tokenize import Encoding, encode
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet
from margincast.runs.store import key_of, write_tensors
from margincast.selection import Selection, select
from margincast.training.run import train_model

SEEDS = (0, 1)
RANDOM, ALL = "random", "all pairs"
NAMES = "persona:agreeableness,interest-in-art"
RUN = Recipe(beta=0.1, learning_rate=1e-5, max_steps=40, eval_steps=40, per_device_train_batch_size=16, bf16=True)
CHAT = replace(RUN, max_steps=60, eval_steps=60, per_device_train_batch_size=8)
CUT = (32, 32)  # tokens of a prompt, from its end, and of a response, from its start, where pairs are chat


@dataclass(frozen=True)
class Setting:
    """pairs: training and held-out ones by the seed;  recipe: of true runs;  keep: share of the training pairs"""

    pairs: Callable[[int], tuple[PairSet, PairSet]]
    recipe: Recipe
    keep: float
    chat: bool = False


def some_personas(train: int, heldout: int) -> tuple[PairSet, PairSet]:
    both = personas(NAMES).split(0.3, 1234)
    return both[0].spread(train), both[1].spread(heldout)


def flips(seed: int) -> tuple[PairSet, PairSet]:
    """A tenth of the training labels is exchanged."""
    train, heldout = some_personas(400, 200)
    wrong = drawn(len(train), 0.1, seed).tolist()
    return PairSet(tuple(turned(p) if bad else p for p, bad in zip(train, wrong, strict=True))), heldout


def imbalanced(seed: int) -> tuple[PairSet, PairSet]:
    """Nine pairs of one persona to one of the other; held out as many of both."""
    train, heldout = some_personas(800, 200)
    common, rare = train.concepts
    few = [pair for pair in train if pair.concept == rare]
    order = torch.randperm(len(few), generator=torch.Generator().manual_seed(seed))[:40].tolist()
    kept = {few[row].id for row in order}
    many = [pair.id for pair in train if pair.concept == common][:360]
    return PairSet(tuple(pair for pair in train if pair.id in kept.union(many))), heldout


def chat_pairs(read: Callable[[Path], tuple[PairSet, PairSet, int]]) -> Callable[[int], tuple[PairSet, PairSet]]:
    def pairs(seed: int) -> tuple[PairSet, PairSet]:
        train, heldout, _ = read(Path(os.environ["MARGINCAST_DATA_DIR"]))
        return train[:400], heldout[:150]

    return pairs


SETTINGS = {
    "flips": Setting(flips, RUN, 0.5),
    "imbalanced": Setting(imbalanced, RUN, 0.25),
    "hh-helpful": Setting(chat_pairs(hh_helpful), CHAT, 0.5, chat=True),
    "dpo_en": Setting(chat_pairs(dpo_en), CHAT, 0.5, chat=True),
    "lora": Setting(flips, replace(RUN, train="lora", learning_rate=2e-4, lora_dropout=0.0), 0.25),
}


@dataclass(frozen=True)
class Run:
    """A rule's part by forecast and by a true run, both of the judging pairs.

    forecast, true: (accuracy, margin)
    """

    setting: str
    seed: int
    rule: str
    forecast: tuple[float, float]
    true: tuple[float, float]
    seconds: float


def encoded(setting: Setting, train: PairSet, heldout: PairSet) -> Encoding:
    loaded, both = model(), PairSet(train.pairs + heldout.pairs)
    encoding = encode(both, loaded.tokenizer, eos=None if setting.chat else False, max_length=8192)
    return cut(encoding, *CUT) if setting.chat else encoding


def forecasts(setting: Setting, seed: int, train: PairSet, heldout: PairSet) -> Selection:
    """The rules, judged by forecasts of the unembedding's run."""
    loaded, encoding = model(), encoded(setting, train, heldout)
    features: Features | Positions
    if setting.chat:
        parts = token_features(loaded, encoding, train, heldout, cache_dir=cache())
        features = Positions(*parts, train, heldout, *head_of(loaded), loaded.name, loaded.hash)
    else:
        features = features_of(loaded, encoding, train, heldout, cache_dir=cache(), layers=False)
    recipe = setting.recipe
    head = Recipe.from_config(asdict(recipe), train="head", bf16=False, seed=100 + seed)
    return select(features, head, keep=setting.keep)


def trained_rules(found: Selection) -> list[str]:
    """The forecast's first and last, random, and two between."""
    others = sorted((name for name in found.rules if name != RANDOM), key=lambda name: _order(found, name))
    places = sorted({0, len(others) // 3, 2 * len(others) // 3, len(others) - 1})
    return [RANDOM, *(others[place] for place in places)]


def _order(found: Selection, name: str) -> tuple[float, float]:
    worth = found.rules[name].worth
    return -worth.accuracy.value, -worth.margin.value


def true_margins(setting: Setting, seed: int, train: PairSet, heldout: PairSet) -> tuple[Tensor, float]:
    """Held-out margins after a true run on `train`, kept in the cache, and its seconds."""
    recipe = replace(setting.recipe, seed=100 + seed, record_train=16)
    key = [train.fingerprint, heldout.fingerprint, CUT if setting.chat else None, asdict(recipe)]
    where = cache() / "selection-truth" / key_of(key)[:16]
    kept = where / "result.safetensors"
    if not kept.is_file():
        loaded = model()
        loaded = replace(loaded, model=copy.deepcopy(loaded.model))
        encoding = encoded(setting, train, heldout)
        features = features_of(loaded, encoding, train, heldout, cache_dir=cache(), layers=False)
        start = time.perf_counter()
        run = train_model(loaded, encoding, features, recipe, where / "run", save_model=False)
        seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        write_tensors(kept, {"heldout": run.heldout.margins[-1].double(), "seconds": seconds})
        shutil.rmtree(where / "run")
    result = load_file(kept)
    return result["heldout"], float(result["seconds"][0])


def runs(name: str, seed: int) -> Iterator[Run]:
    """The forecast and the true run of five rules, and of all pairs."""
    setting = SETTINGS[name]
    train, heldout = setting.pairs(seed)
    found = forecasts(setting, seed, train, heldout)
    for rule in [*trained_rules(found), ALL]:
        rows = range(len(train)) if rule == ALL else found.rules[rule].rows.tolist()
        part = PairSet(tuple(train.pairs[row] for row in rows))
        margins, seconds = true_margins(setting, seed, part, heldout)
        judged = margins[found.judges]
        worth = found.whole if rule == ALL else found.rules[rule].worth
        true = (float((judged > 0).double().mean()), float(judged.mean()))
        yield Run(name, seed, rule, (worth.accuracy.value, worth.margin.value), true, seconds)


def line(run: Run) -> str:
    (accuracy, margin), (true, true_margin) = run.forecast, run.true
    return (
        f"{run.setting}:{run.seed:<3} {run.rule:18} {accuracy:8.1%} {margin:10.4f} {true:8.1%} {true_margin:10.4f} "
        f"{run.seconds:7.0f} s"
    )


def agreement(found: Sequence[Run]) -> str:
    """Kendall's tau of the rules' forecast order with the true one, and whether the forecast's first is the best."""
    rules = [run for run in found if run.rule != ALL]
    taus = [
        kendalltau([run.forecast[which] for run in rules], [run.true[which] for run in rules]).statistic
        for which in (0, 1)
    ]
    first, best = max(rules, key=lambda run: run.forecast), max(rules, key=lambda run: run.true)
    return (
        f"{found[0].setting}:{found[0].seed} tau {taus[0]:+.2f} (accuracy), {taus[1]:+.2f} (margin); "
        f"first {first.rule} {first.true[0]:.1%}, best by true runs {best.rule} {best.true[0]:.1%}"
    )


def twin_noise(found: Sequence[Run]) -> str:
    """How far two seeds' true runs on random parts lie apart in accuracy."""
    twins = [run.true[0] for run in found if run.rule == RANDOM]
    return f"{abs(twins[0] - twins[1]):.1%}" if len(twins) > 1 else "not known from one seed"


def main(asked: Sequence[str]) -> None:
    chosen = [each.split(":") for each in asked] or [[name, str(seed)] for name in SETTINGS for seed in SEEDS]
    print(f"{'setting':12} {'rule':18} {'forecast':>8} {'margin':>10} {'true':>8} {'margin':>10}")
    every: list[list[Run]] = []
    for name, seed in chosen:
        found = []
        for run in runs(name, int(seed)):
            print(line(run), flush=True)
            found.append(run)
        print(agreement(found), flush=True)
        every.append(found)
    for name in dict.fromkeys(name for name, _ in chosen):
        mine = [run for found in every for run in found if run.setting == name]
        print(f"{name}: twin noise {twin_noise(mine)}")
    taus = [
        kendalltau(*zip(*((run.forecast[0], run.true[0]) for run in each if run.rule != ALL), strict=True)).statistic
        for each in every
    ]
    print(f"median tau {median(taus):+.2f} of {len(taus)} settings and seeds")


if __name__ == "__main__":
    main(sys.argv[1:])
