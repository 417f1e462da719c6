"""A run against a forecast's own intervals: who came inside, its score over the floor, and what else differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from margincast.cli.compare import check_twins
from margincast.comparison import compare
from margincast.errors import InputError
from margincast.records import PairSet, SplitTrajectory, Trajectory
from margincast.report.reading import read_differences, read_foretold
from margincast.runs.differences import differences
from margincast.runs.load import Run
from tests.problems import make_pairs

HELDOUT = make_pairs(12, concepts=2)
STEPS = (0, 5, 10)


@dataclass(frozen=True)
class Foreseen(Trajectory):
    interval_tensors: Mapping[str, Tensor] = field(kw_only=True)


def trajectory(margins: Tensor, pairs: PairSet = HELDOUT) -> Trajectory:
    heldout = SplitTrajectory(pairs, torch.stack([0 * margins, margins / 2, margins]))
    return Trajectory(STEPS, SplitTrajectory(PairSet(()), torch.zeros(3, 0)), heldout, 0.1)


def foreseen(low: float, median: float, high: float) -> Foreseen:
    """The same interval for every margin and, of accuracies, from 40% to 100%, at every step after 0."""
    margin = torch.tensor([[[0.0] * 3, [low, median, high], [low, median, high]]] * 3)[..., [1, 0, 2]]
    accuracy = torch.tensor([[[0.0] * 3, [0.7, 0.4, 1.0], [0.7, 0.4, 1.0]]] * 3)
    ends = {f"heldout_{end}": torch.full((3, 12), value) for end, value in (("low", low), ("high", high))}
    tensors = {"band_margin": margin, "band_accuracy": accuracy, **ends}
    return Foreseen(**vars(trajectory(torch.full((12,), median))), interval_tensors=tensors)


def came(first: float, second: float) -> Trajectory:
    """Every margin of the first concept is `first`, of the other `second`."""
    return trajectory(torch.tensor([first, second] * 6, dtype=torch.float64))


def test_who_came_inside_is_counted_by_concept_and_said() -> None:
    found = compare(foreseen(0.1, 0.3, 0.9), came(0.5, -0.2)).foretold
    assert found is not None
    results = {**found.as_dict(), "step": 10}
    assert results["inside"]["margin"] == {"end": 0.5, "steps": 0.5, "of": 2, "outside": ["concept-1"]}
    assert results["inside"]["accuracy"]["outside"] == ["concept-1"]
    assert results["inside"]["pairs"] == 0.5
    assert results["rho"] == {"accuracy": None, "margin": None}
    accuracy, margin, pairs = read_foretold(results)
    assert accuracy.endswith("outside: concept-1 (came 0.0%, foretold 70.0% [40.0%, 100.0%]).")
    assert "1 of 2 margins came inside the forecast's 90% interval" in margin
    assert "50% of the margins of single pairs" in pairs
    assert "outside" not in " ".join(
        read_foretold({**compare(foreseen(0.1, 0.3, 0.9), came(0.5, 0.5)).foretold.as_dict(), "step": 10})
    )  # type: ignore[union-attr]


def test_the_forecast_may_be_on_either_side_and_two_forecasts_have_no_run() -> None:
    forecast, run = foreseen(0.1, 0.3, 0.9), came(0.5, -0.2)
    assert compare(forecast, run).foretold == compare(run, forecast).foretold
    assert compare(forecast, forecast).foretold is None
    assert compare(run, run).foretold is None


def test_rho_is_the_score_over_half_of_what_twins_differ_by() -> None:
    sure = replace(foreseen(0.5, 0.5, 0.5))
    found = compare(sure, came(0.7, 0.9), came(0.4, 0.1)).foretold
    assert found is not None
    rho = found.rho("margin")
    # A point forecast scores its distance, in the mean over both runs; the floor is half of what they differ by.
    assert rho is not None
    assert rho.value == pytest.approx((0.2 + 0.1 + 0.4 + 0.4) / (0.3 + 0.8))
    ends = {each.concept: each for each in found.end if each.quantity == "margin"}
    assert ends["concept-0"].floor == pytest.approx(0.15)
    assert ends["concept-1"].twins == pytest.approx(0.8)
    same = compare(sure, came(0.7, 0.9), came(0.7, 0.9)).foretold
    assert same is not None
    assert np.isnan(same.rho("margin").value)  # type: ignore[union-attr]
    assert any("no floor" in text for text in read_foretold({**same.as_dict(), "step": 10}))


def test_concepts_that_the_run_has_in_part_are_named_and_left_out() -> None:
    some = PairSet(tuple(pair for pair in HELDOUT if pair.concept == "concept-0") + HELDOUT.pairs[1:2])
    found = compare(foreseen(0.1, 0.3, 0.9), trajectory(torch.full((7,), 0.5), some)).foretold
    assert found is not None
    assert {each.concept for each in found.outcomes} == {"concept-0"}
    assert found.partial == ("concept-1",)
    assert any(
        "has not all of the forecast's pairs of concept-1" in text
        for text in read_foretold({**found.as_dict(), "step": 10})
    )


def test_twins_without_a_forecast_or_of_other_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="leave them out"):
        compare(came(0.1, 0.2), came(0.1, 0.2), came(0.1, 0.2))
    other = trajectory(torch.full((6,), 0.5), PairSet(HELDOUT.pairs[:6]))
    with pytest.raises(InputError, match="6 of the 12 held-out pairs"):
        compare(foreseen(0.1, 0.3, 0.9), came(0.5, 0.5), other)


def of(command: str, train: str, learning_rate: float | None = 1e-5, **more: Any) -> Run:
    config = {"train": train, "learning_rate": learning_rate, "beta": 0.1, **more}
    summary = {"command": command, "config": config, "environment": {"dtype": "float32"}, "model": {"id": "m"}}
    return Run(Path("run"), summary, came(0.1, 0.1))


def said(a: Run, b: Run) -> str:
    return " ".join(read_differences({**differences(a, b).as_dict(), "titles": [a.title, b.title]}))


def test_the_backbone_is_claimed_only_where_nothing_else_differs() -> None:
    frozen = of("forecast", "head")
    assert "is what the moving backbone adds" in said(frozen, of("train", "all"))
    other = said(frozen, of("train", "all", 1e-3))
    assert "train (head in A, all in B), learning_rate (1e-05 in A, 0.001 in B)" in other
    assert "all of these together" in other
    assert "backbone adds" not in other
    unknown = said(frozen, of("train", "all", None))
    assert "backbone adds" not in unknown
    assert "does not record: learning_rate" in unknown
    assert "backbone adds" not in said(frozen, of("train", "lora"))
    assert said(frozen, of("train", "head")) == ""


def test_a_twin_is_the_same_run_under_another_seed() -> None:
    run = of("train", "all", seed=1)
    check_twins(run, [of("train", "all", seed=2), of("train", "all", seed=3)])
    with pytest.raises(InputError, match="differs from the run in learning_rate"):
        check_twins(run, [of("train", "all", 1e-4, seed=2)])
    with pytest.raises(InputError, match="has the seed of the run"):
        check_twins(run, [of("train", "all", seed=1)])


def test_settings_that_move_nothing_are_not_named() -> None:
    assert differences(of("train", "all", eval_steps=1), of("train", "all", eval_steps=9)).differing == {}
    seeds = differences(of("train", "all", seed=1), of("train", "all", seed=2))
    assert seeds.differing == {"seed": (1, 2)}
    adapters = of("train", "lora", lora_r=8), of("train", "lora", lora_r=16)
    assert differences(*adapters).differing == {"lora_r": (8, 16)}
    assert differences(of("train", "all", lora_r=8), of("train", "all", lora_r=16)).differing == {}


def test_a_training_run_is_of_the_model_that_it_started_from() -> None:
    frozen, run = of("forecast", "head"), of("train", "head")
    frozen.summary["model"] = {"id": "m", "hash": "abc"}
    run.summary["model"] = {"id": "m", "hash": "abc, trained in run 12"}
    assert differences(frozen, run).differing == {}
    again = of("train", "head")
    again.summary["model"] = {"id": "m", "hash": "abc, trained in run 12, trained in run 34"}
    assert set(differences(frozen, again).differing) == {"model"}
