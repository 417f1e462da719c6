"""How does each method forecast the end of a run? What it looks at: features, a tenth of the steps, other runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.forecast.truth import Truth, every_run, laws_of
from margincast.frozen.engine.pairspace import choose_form, simulate_in
from margincast.intervals import Estimate
from margincast.trained.fit_run import RIDGE
from margincast.trained.forecast import noise_of
from margincast.trained.laws import Laws
from margincast.trained.noise import accuracies_of, drawn_accuracies, drawn_runs, interval


@dataclass(frozen=True)
class Answer:
    """A forecast of the end, over beta.

    margins: (pairs,);  accuracy: of every concept, mean: margin, where they are not those of `margins`
    spans: 90% intervals of the accuracies and of the mean margin, where a method has such
    """

    margins: Tensor
    accuracy: Sequence[float] | None = None
    mean: float | None = None
    spans: tuple[Sequence[Estimate], Estimate] | None = None


ALPHA = 0.6  # where runs of this size are
Method = Callable[[Truth, Sequence[Truth]], Answer]


def persistence(seen: Truth, others: Sequence[Truth]) -> Answer:
    return Answer(seen.pilot.margins)


def power_law(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The pilot's margins times what pilots of other runs grew by, as a power of the steps."""
    growth = [
        np.log(max(1e-3, float(other.margins[-1].mean())) / max(1e-3, float(other.pilot.margins.mean())))
        / np.log(other.run.steps / other.run.pilot)
        for other in others
    ]
    return Answer(seen.pilot.margins * (seen.run.steps / seen.run.pilot) ** float(np.median(growth)))


def frozen(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The exact run of the unembedding alone, same optimizer and batches."""
    train, heldout = seen.spaces
    plan = seen.plan
    form = choose_form(train, plan.optimizer, seen.run.steps, seen.run.batch, plan.loss)
    states = simulate_in(
        form, train, plan.optimizer, plan.batches, unembedding=train.zeros(), loss=plan.loss, factor=lambda _: 1.0,
        max_grad_norm=1.0,
    )  # fmt: skip
    return Answer(heldout.margins(list(states)[-1]) / seen.run.beta)


def probe(seen: Truth, others: Sequence[Truth]) -> Answer:
    """Ridge regression on frozen features, its size from other runs."""
    shape = seen.last_spectrum.shape(1.0, 3e-3)
    size = float(np.median([float(other.margins[-1].mean()) for other in others]))
    return Answer(shape / shape.mean() * size)


def last_layer(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The kernel of the last layer's features, between one step and least squares. Its size is not forecast."""
    return Answer(seen.last_spectrum.shape(ALPHA, RIDGE))


def inner_layers(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The same of inner layers."""
    return Answer(seen.spectrum.shape(ALPHA, RIDGE))


def floor(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The same run with another batch order. It is no forecast: it has seen the run's end."""
    for other in every_run():
        if other is not seen and replace(other.run, name="", seed=0) == replace(seen.run, name="", seed=0):
            return Answer(other.margins[-1])
    raise LookupError


def features_only(seen: Truth, others: Sequence[Truth]) -> Answer:
    return _ours(seen, laws_of(others, with_rehearsal=False))


def with_rehearsal(seen: Truth, others: Sequence[Truth]) -> Answer:
    return _ours(seen, laws_of(others, with_rehearsal=True))


def rehearsal_alone(seen: Truth, others: Sequence[Truth]) -> Answer:
    """The margins of the rehearsal as they are."""
    return Answer(seen.rehearsal_margins)


def _ours(seen: Truth, laws: Laws) -> Answer:
    made = seen.forecast(laws)
    reached = None if laws.rehearsal is None else float(seen.rehearsal_parts.rest.mean())
    noise = noise_of(laws, reached, None, seen.run.steps)
    ends = torch.tensor([0, len(made.rest) - 1])
    *_, draws = drawn_runs(
        made.rest[ends], made.shift[ends], seen.plan.lengths[ends], seen.responses.concepts, seen.responses.kinds, noise
    )
    margins = made.rest[-1] + made.shift[-1]
    sizes = torch.tensor([len(rows) for rows in seen.groups])
    accuracies = drawn_accuracies(accuracies_of(margins, seen.groups)[None], sizes, torch.ones(1), noise)[:, 0, :-1]
    mean = interval(draws.mean(1))
    return Answer(margins, mean=mean.value, spans=([interval(one) for one in accuracies.T], mean))


METHODS: dict[str, Method] = {
    "persistence (pilot)": persistence,
    "power law (pilot)": power_law,
    "frozen flow": frozen,
    "ridge probe": probe,
    "kernel of the last layer": last_layer,
    "kernel of inner layers": inner_layers,
    "rehearsal as it is": rehearsal_alone,
    "ours, features only": features_only,
    "ours, rehearsal of 10%": with_rehearsal,
    "floor: other seed": floor,
}
