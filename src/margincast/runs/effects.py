"""What does a run change beside its margins, in numbers? `effects/<name>` of `metrics.jsonl`, `results.effects`.

Means over tokens are ratios of sums over texts, and their intervals a bootstrap over texts, whose tokens are not drawn
one by one. Of several sets each has its own numbers, `effects/<set>/<name>`, beside those of all texts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from margincast.effects import AnswerEffects, Effects, PairEffects, TextEffects
from margincast.intervals import Estimate, bootstrap, clustered_slope, mean_interval, normal_interval, proportion
from margincast.records import PairSet, SplitTrajectory, Trajectory
from margincast.results import Json

PREFIX = "effects/"
TEXT_METRICS = ("kl", "perplexity", "greedy_changed")
ANSWER_METRICS = {"repetition": "repeated", "answer_tokens": "length", "answers_changed": "changed"}


def effect_metrics(trajectory: Trajectory, index: int) -> Iterator[tuple[str, float]]:
    """Name and value of everything that was measured beside the run's own pairs, at its `index`-th recorded step."""
    effects = trajectory.effects
    if effects is None:
        return
    for prefix, text in _all_texts(effects):
        totals = text.tokens.double().sum()
        yield f"{prefix}kl", float(text.kl[index].sum() / totals)
        yield f"{prefix}perplexity", float((text.loss[index].sum() / totals).exp())
        yield f"{prefix}greedy_changed", float(text.changed[index].sum() / totals)
    for pairs in effects.pairs:
        for prefix, rows in _groups(pairs):
            margins = pairs.margins[index][rows].double()
            yield f"{prefix}rewards/margins", float(margins.mean())
            yield f"{prefix}rewards/accuracies", float((margins > 0).double().mean())
    yield from _heldout_metrics(trajectory, effects, index)
    if effects.answers is not None:
        for name, field in ANSWER_METRICS.items():
            yield f"{PREFIX}{name}", float(getattr(effects.answers, field)[index].mean())


def effect_results(trajectory: Trajectory) -> Json:
    """The `results.effects` of a run: what was measured at its last recorded step, each {value, low, high}."""
    effects = trajectory.effects
    if effects is None:
        return {}
    found: Json = {}
    sets: Json = {}
    for prefix, text in _all_texts(effects):
        name = prefix.removeprefix(PREFIX).rstrip("/")
        (sets.setdefault(name, {}) if name else found).update(_of_texts(text))
    for pairs in effects.pairs:
        sets.setdefault(pairs.name, {})["concepts"] = _of_pairs(pairs)
    if effects.answers is not None:
        found |= _of_answers(effects.answers)
    found |= _of_heldout(trajectory.heldout, effects, trajectory.beta)
    return {"effects": {**found, "sets": sets}}


def effect_names(effects: Effects, heldout: PairSet) -> list[str]:
    """The names of `effect_metrics` for a run that will measure such effects."""
    return [name for name, _ in effect_metrics(_blank(effects, heldout), 0)]


def _blank(effects: Effects, heldout: PairSet) -> Trajectory:
    split = SplitTrajectory(heldout, torch.zeros(1, len(heldout)), torch.zeros(1, len(heldout)))
    return Trajectory((0,), SplitTrajectory(PairSet(()), torch.zeros(1, 0)), split, 1.0, effects=effects)


def _all_texts(effects: Effects) -> Iterator[tuple[str, TextEffects]]:
    """All texts together, and, of several sets, each."""
    texts = effects.texts
    if not texts:
        return

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(text, name) for text in texts], dim=-1)

    yield PREFIX, TextEffects("", joined("tokens"), joined("kl"), joined("loss"), joined("changed"))
    if len(texts) > 1:
        yield from ((f"{PREFIX}{text.name}/", text) for text in texts)


def _groups(pairs: PairEffects) -> Iterator[tuple[str, list[int]]]:
    """All pairs of a set, and, of several concepts, each."""
    prefix = f"{PREFIX}{pairs.name}/"
    yield prefix, list(range(len(pairs.pairs)))
    if len(pairs.pairs.concepts) > 1:
        for concept in pairs.pairs.concepts:
            yield f"{prefix}{concept}_", [k for k, pair in enumerate(pairs.pairs) if pair.concept == concept]


def _heldout_metrics(trajectory: Trajectory, effects: Effects, index: int) -> Iterator[tuple[str, float]]:
    if trajectory.heldout.chosen is None or not len(trajectory.heldout.pairs):
        return
    gained = _gained(trajectory.heldout, effects, trajectory.beta, index)
    yield f"{PREFIX}chosen_logps", float((effects.heldout.chosen + gained).mean())
    if _many(effects):
        yield f"{PREFIX}length_slope", _slope(trajectory.heldout, effects, index)[0]


def _many(effects: Effects) -> bool:
    """Whether some held-out response has more than one token."""
    return bool((effects.heldout.lengths > 1).any())


def _gained(heldout: SplitTrajectory, effects: Effects, beta: float, index: int) -> Tensor:
    """What log-probabilities of held-out chosen responses gained since step 0, (pairs,), from their rewards."""
    assert heldout.chosen is not None
    gained = (heldout.chosen[index] - heldout.chosen[0]).double() / beta
    return gained * effects.heldout.lengths[:, 0] if effects.heldout.averaged else gained


def _slope(heldout: SplitTrajectory, effects: Effects, index: int) -> tuple[float, float]:
    assert heldout.chosen is not None
    gained = [side[index] - side[0] for side in (heldout.chosen, heldout.chosen - heldout.margins)]
    found = clustered_slope(effects.heldout.lengths.double(), torch.stack(gained, dim=1).double())
    return found.value, found.error


def _of_texts(text: TextEffects) -> Json:
    tokens = text.tokens.double().numpy()

    def share(values: Tensor) -> Estimate:
        return bootstrap(_ratio, values.double().numpy(), tokens)

    def perplexity(values: Tensor) -> Estimate:
        return bootstrap(lambda *samples: float(np.exp(_ratio(*samples))), values.double().numpy(), tokens)

    found = {
        "kl": share(text.kl[-1]),
        "perplexity_before": perplexity(text.loss[0]),
        "perplexity_after": perplexity(text.loss[-1]),
        "perplexity_factor": perplexity(text.loss[-1] - text.loss[0]),
        "greedy_changed": share(text.changed[-1]),
    }
    return {name: each.as_dict() for name, each in found.items()} | {"tokens": int(tokens.sum()), "texts": len(tokens)}


def _ratio(values: np.ndarray, tokens: np.ndarray) -> float:
    return float(values.sum() / tokens.sum())


def _of_pairs(pairs: PairEffects) -> Json:
    found = {}
    last = pairs.margins[-1].double().numpy()
    for concept in pairs.pairs.concepts:
        mine = last[[k for k, pair in enumerate(pairs.pairs) if pair.concept == concept]]
        found[concept] = {
            "margin": mean_interval(mine).as_dict(),
            "accuracy": proportion(int((mine > 0).sum()), len(mine)).as_dict(),
            "pairs": len(mine),
        }
    return found


def _of_answers(answers: AnswerEffects) -> Json:
    def mean(values: Tensor) -> Json:
        return mean_interval(values.numpy()).as_dict()

    count = answers.length.shape[1]
    return {
        "repetition": mean(answers.repeated[-1]),
        "repetition_before": mean(answers.repeated[0]),
        "answer_tokens": mean(answers.length[-1]),
        "answer_tokens_before": mean(answers.length[0]),
        "answers_changed": proportion(int(answers.changed[-1].sum()), count).as_dict(),
        "answers": count,
    }


def _of_heldout(heldout: SplitTrajectory, effects: Effects, beta: float) -> Json:
    if heldout.chosen is None or not len(heldout.pairs):
        return {}
    before = effects.heldout.chosen.numpy()
    change = _gained(heldout, effects, beta, -1).numpy()
    found = {
        "chosen_logps_before": mean_interval(before).as_dict(),
        "chosen_logps_after": mean_interval(before + change).as_dict(),
        "chosen_logps_change": mean_interval(change).as_dict(),
    }
    if _many(effects):
        found["length_slope"] = normal_interval(*_slope(heldout, effects, -1)).as_dict()
    return found
