"""A run of the bank, as forecasts see it: what they may look at, and the truth. Margins are over beta, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.forecast.bank import load, rehearsal_of, settings_of, whole
from benchmarks.forecast.plan import PLAN, Run
from margincast.records import Features, FeatureSet, Pair, PairSet, SplitTrajectory, Trajectory
from margincast.trained.fit import fit_laws
from margincast.trained.fit_run import FitRun
from margincast.trained.laws import Laws, PilotMargins
from margincast.trained.rehearsal import Rehearsal
from margincast.trained.shape import Spectrum, token_spectra
from margincast.trained.trained_run import TrainedRun

MODEL = "SmolLM2-135M-Instruct"
WORDS = ("No", "Yes")  # the tokens 0 and 1 of the bank


@dataclass(frozen=True)
class Truth(FitRun):
    """A run of the bank with what `bank.load` has of it."""

    run: Run = field(kw_only=True)
    tensors: dict[str, Tensor] = field(kw_only=True, repr=False)

    @cached_property
    def pilot(self) -> PilotMargins:
        """Of a tenth of the steps."""
        return PilotMargins(self.margins[self.steps.index(self.run.pilot)], self.run.pilot)

    @cached_property
    def last_spectrum(self) -> Spectrum:
        """Of the features that the unembedding reads."""
        train, heldout = self.spaces
        return token_spectra(train.rows(self.plan.taken), heldout)[0]


def trained_run(run: Run, tensors: dict[str, Tensor], rehearsal: dict[str, Tensor]) -> TrainedRun:
    """`run` as the product fits it, of the tensors that the bank keeps"""
    train, heldout = (_split(run, tensors, name) for name in ("train", "heldout"))
    hidden = train.hidden.shape[1]
    features = Features(train, heldout, torch.tensor([0, 1]), torch.zeros(2, hidden), MODEL, MODEL)
    margins = run.beta * tensors["heldout"].double()
    nothing = SplitTrajectory(PairSet(()), torch.zeros(len(margins), 0, dtype=torch.float64))
    steps = tuple(tensors["steps"].tolist())
    trajectory = Trajectory(steps, nothing, SplitTrajectory(heldout.pairs, margins), run.beta)
    rehearsed = Rehearsal(run.beta * rehearsal["heldout"].double(), int(rehearsal["pairs"]))
    return TrainedRun(features, settings_of(run), trajectory, rehearsed, run.personas)


def _split(run: Run, tensors: dict[str, Tensor], name: str) -> FeatureSet:
    yes, concepts = tensors[f"{name}_yes"].long().tolist(), tensors[f"{name}_concept"].long().tolist()
    pairs = tuple(
        Pair(f"{name}:{row}", run.concepts[concept], str(row), WORDS[side], WORDS[1 - side], "bank", row + 1)
        for row, (side, concept) in enumerate(zip(yes, concepts, strict=True))
    )
    reference = tensors[f"{name}_reference"].double()
    return FeatureSet(
        PairSet(pairs), tensors[f"features_{name}"].double(), tuple((side,) for side in yes),
        tuple((1 - side,) for side in yes), reference, torch.zeros_like(reference),
        layers=tensors[f"features_layers_{name}"],
    )  # fmt: skip


@cache
def every_run() -> list[Truth]:
    """All runs of which everything is kept."""
    runs = [run for run in PLAN if whole(run)]
    return [truth_of(run, load(run), load_file(rehearsal_of(run))) for run in runs]


def truth_of(run: Run, tensors: dict[str, Tensor], rehearsal: dict[str, Tensor]) -> Truth:
    return Truth(trained_run(run, tensors, rehearsal), run=run, tensors=tensors)


_laws: dict[tuple[frozenset[str], bool], Laws] = {}


def laws_of(runs: Sequence[Truth], with_rehearsal: bool) -> Laws:
    """The product's `fit_laws`, once for the same runs."""
    key = frozenset(each.run.name for each in runs), with_rehearsal
    if key not in _laws:
        _laws[key] = fit_laws(runs, with_rehearsal)
    return _laws[key]
