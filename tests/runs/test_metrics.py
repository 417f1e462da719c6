"""Metric rows: TRL's names, means over the right pairs, step 0 as the contract says."""

from __future__ import annotations

import math

import pytest
import torch

from margincast.records import PairSet, SplitTrajectory, Trajectory
from margincast.runs.metrics import concept_results, concept_rows, metric_rows
from tests.oracles import wilson_by_bisection
from tests.problems import make_pairs

PAIRS = make_pairs(10, concepts=2)
TRAIN, HELDOUT = PairSet(PAIRS.pairs[:4]), PairSet(PAIRS.pairs[4:])


def trajectory(with_chosen: bool = True) -> Trajectory:
    generator = torch.Generator().manual_seed(0)

    def split(pairs: PairSet) -> SplitTrajectory:
        margins = torch.randn(3, len(pairs), generator=generator, dtype=torch.float64)
        chosen = torch.randn(3, len(pairs), generator=generator, dtype=torch.float64)
        margins[0], chosen[0] = 0.0, 0.0
        return SplitTrajectory(pairs, margins, chosen if with_chosen else None)

    return Trajectory((0, 5, 8), split(TRAIN), split(HELDOUT), beta=0.1)


def test_rows_hold_the_plain_means() -> None:
    run = trajectory()
    rows = metric_rows(run)
    assert [row["step"] for row in rows] == [0, 5, 8]
    groups = {"": (run.train, range(4)), "eval_": (run.heldout, range(6))}
    groups |= {f"eval_concept-{c}_": (run.heldout, [k for k in range(6) if (k + 4) % 2 == c]) for c in range(2)}
    for index, row in enumerate(rows):
        for prefix, (split, members) in groups.items():
            margins = [float(split.margins[index, k]) for k in members]
            assert split.chosen is not None
            chosen = [float(split.chosen[index, k]) for k in members]
            count = len(margins)
            expected = {
                "loss": math.fsum(math.log1p(math.exp(-r)) for r in margins) / count,
                "rewards/margins": math.fsum(margins) / count,
                "rewards/accuracies": sum(r > 0 for r in margins) / count,
                "rewards/chosen": math.fsum(chosen) / count,
                "rewards/rejected": math.fsum(c - r for c, r in zip(chosen, margins, strict=True)) / count,
            }
            for name, value in expected.items():
                assert row[prefix + name] == pytest.approx(value, rel=1e-12, abs=1e-15)
        assert len(row) == 1 + 5 * len(groups)


def test_step_0_has_margin_0_loss_log_2_and_accuracy_0() -> None:
    """0 is not a correct preference: TRL's accuracy and Definition 3.1 are both strict."""
    row = metric_rows(trajectory())[0]
    for prefix in ("", "eval_", "eval_concept-0_", "eval_concept-1_"):
        assert row[f"{prefix}rewards/margins"] == 0.0
        assert row[f"{prefix}rewards/accuracies"] == 0.0
        assert row[f"{prefix}loss"] == pytest.approx(math.log(2.0), rel=1e-15)


def test_without_log_probabilities_there_are_no_chosen_rewards() -> None:
    assert not [name for row in metric_rows(trajectory(with_chosen=False)) for name in row if "chosen" in name]


def test_float32_margins_are_averaged_in_float64() -> None:
    margins = torch.full((1, 3), 1.0, dtype=torch.float32)
    margins[0, 0] = 2.0**24  # in float32, 2^24 + 1 is 2^24
    split = SplitTrajectory(PairSet(PAIRS.pairs[:3]), margins)
    assert metric_rows(Trajectory((0,), split, split, 0.1))[0]["rewards/margins"] == (2.0**24 + 2.0) / 3.0


def test_one_broken_margin_shows_in_its_own_groups_only() -> None:
    run = trajectory()
    run.heldout.margins[2, 1] = float("nan")  # concept-1
    row = metric_rows(run)[2]
    assert math.isnan(row["eval_rewards/margins"])
    assert math.isnan(row["eval_concept-1_rewards/margins"])
    assert math.isfinite(row["eval_concept-0_rewards/margins"])
    assert math.isfinite(row["rewards/margins"])


def test_concepts_are_summed_up_at_the_last_step_with_intervals() -> None:
    run = trajectory()
    results = concept_results(run)
    assert concept_rows(HELDOUT) == {"concept-0": [0, 2, 4], "concept-1": [1, 3, 5]}
    assert list(results) == ["concept-0", "concept-1"]
    for concept, rows in concept_rows(HELDOUT).items():
        last = run.heldout.margins[-1][rows]
        margin, accuracy = results[concept]["heldout_margin"], results[concept]["heldout_accuracy"]
        assert margin["value"] == pytest.approx(float(last.mean()), rel=1e-12)
        assert (
            float(last.min()) - 1e-12 <= margin["low"] < margin["value"] < margin["high"] <= float(last.max()) + 1e-12
        )
        right = int((last > 0).sum())
        assert accuracy["value"] == right / 3
        assert (accuracy["low"], accuracy["high"]) == pytest.approx(wilson_by_bisection(right, 3, 1.959964), abs=1e-6)
