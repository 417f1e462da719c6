"""The verdict on a forecast: every rule on a case where it speaks, and on one where its sentence would be false."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from margincast.decision import Verdict, verdict
from margincast.decision.decide import best_of
from margincast.decision.evidence import Expected
from margincast.decision.rules import swing
from margincast.intervals import Estimate, proportion
from margincast.records import Pair, PairSet, SplitTrajectory, Trajectory
from margincast.report.verdict import expected_rows, verdict_lines
from margincast.trained.calibration import package_calibration
from margincast.trained.constants import package_constants
from margincast.trained.forecast import Band, TrainedForecast
from margincast.trained.validity import Validity


def pairs(count: int, concepts: int = 1, texts: Sequence[str] = ("a b", "c d e", "f", "g h", "i j")) -> PairSet:
    made = [
        Pair(f"p{k}", f"topic-{k % concepts}", f"prompt {k}", texts[(k // concepts) % len(texts)], "no", "f", k + 1)
        for k in range(count)
    ]
    return PairSet(tuple(made))


def signs(right: Sequence[bool]) -> torch.Tensor:
    return torch.tensor([0.1 if each else -0.1 for each in right], dtype=torch.float64)


def exact(heldout: PairSet, margins: Sequence[torch.Tensor], train: Sequence[float] = (), **more: Any) -> Trajectory:
    """A frozen forecast with these held-out margins at steps 0, 10, 20 ...; `train`: its mean training margins."""
    steps = tuple(10 * index for index in range(len(margins) + 1))
    rows = torch.stack([0 * margins[0], *margins])
    known = PairSet(pairs(2).pairs if train else ())
    means = torch.tensor([0.0, *train] if train else [0.0] * len(steps), dtype=torch.float64)
    trained = SplitTrajectory(known, means[:, None].expand(-1, len(known)))
    return Trajectory(steps, trained, SplitTrajectory(heldout, rows, **more), 0.1, origin="forecast")


def of_share(right: int, count: int, **more: Any) -> Verdict:
    return verdict(exact(pairs(count), [signs([k < right for k in range(count)])], **more))


def texts(found: Verdict, rule: str) -> list[str]:
    return [reason.says for reason in found.reasons if reason.rule == rule]


@pytest.mark.parametrize(
    "right, count, decision, says",
    [
        (88, 120, "go", "73% (95%: 65% to 80%) of 120 pairs: above chance"),
        (62, 120, "stop", "52% (95%: 43% to 60%) of 120 pairs: not told from chance, 50%, and at best 60%."),
        (30, 120, "stop", "below chance"),
        (4, 6, "caution", "not shown to be above chance, 50%. Hold out more pairs (--holdout, --heldout): of 67%"),
    ],
)
def test_accuracy_is_held_to_chance_with_its_interval(right: int, count: int, decision: str, says: str) -> None:
    found = of_share(right, count)
    assert found.decision == decision
    (text,) = texts(found, "accuracy")
    assert says in text


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_the_pairs_that_would_tell_are_the_fewest_whose_interval_is_above_chance(share: float) -> None:
    needed = Expected(share, 0.0, 1.0, 6).needed
    assert needed is not None

    def low(count: int) -> float:  # Wilson's interval of a share that need not be whole pairs
        z = 1.959963984540054
        centre = (share + z * z / (2 * count)) / (1 + z * z / count)
        return centre - z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))

    assert low(needed) > 0.5 >= low(needed - 1)
    assert Expected(0.5, 0.0, 1.0, 6).needed is None
    assert Expected(share, 0.0, 1.0, 6, sure=False).needed is None


def test_concepts_are_sorted_and_only_those_above_chance_are_called_learned() -> None:
    heldout = pairs(60, concepts=4)
    right = {"topic-0": 15, "topic-1": 10, "topic-2": 1, "topic-3": 13}
    seen: dict[str, int] = {}
    shares = []
    for pair in heldout:
        seen[pair.concept] = seen.get(pair.concept, 0) + 1
        shares.append(seen[pair.concept] <= right[pair.concept])
    found = verdict(exact(heldout, [signs(shares)]))
    assert list(found.concepts) == ["topic-0", "topic-3", "topic-1", "topic-2"]
    for name, count in right.items():
        assert found.concepts[name].low == proportion(count, 15).low
    learned, wrong, unknown = sorted(texts(found, "concepts"))
    assert learned == "Learned the wrong way round: topic-2 7% (1% to 30%)."
    assert wrong == "Learned: topic-0 100% (80% to 100%), topic-3 87% (62% to 96%)."
    assert "Not shown to be above chance by so few pairs: topic-1 67% (42% to 85%, 15 pairs)" in unknown
    assert found.decision == "caution"
    standings = {row[0]: row[3] for row in expected_rows(found.as_dict())}
    assert (standings["topic-0"], standings["topic-1"]) == ("learned", "not shown")


def test_one_response_that_takes_all_is_called_that() -> None:
    heldout = pairs(120, texts=(" Yes", " No"))
    found = verdict(exact(heldout, [signs([pair.chosen == " Yes" for pair in heldout])]))
    assert found.decision == "stop"
    (text,) = texts(found, "one_response")
    assert 'of those that prefer "Yes" 60 of 60; of those that prefer "No" 0 of 60 are right' in text
    both = verdict(exact(heldout, [signs([k % 5 > 0 for k in range(120)])]))
    assert texts(both, "one_response") == []
    assert both.decision == "go"


def test_an_end_that_is_a_phase_of_an_oscillation_is_called_that() -> None:
    heldout = pairs(40, texts=(" Yes", " No"))
    yes, every = (signs([k % 2 == 0 or all_ for k in range(40)]) for all_ in (False, True))
    found = verdict(exact(heldout, [yes, yes, every, yes, every]))
    (text,) = texts(found, "unsettled")
    assert 'of pairs that prefer "No" goes up and down between 0% and 100% from step 30 on' in text
    assert texts(verdict(exact(heldout, [yes, yes, yes, yes, every])), "unsettled") == []  # it rises, and that is all
    assert swing([0.1, 0.5, 0.9]) == 0
    assert swing([0.9, 0.2, 0.6]) == pytest.approx(0.4)
    assert swing([0.1, 0.7, 0.4]) == pytest.approx(0.3)


def test_overfitting_is_training_margins_that_go_on_alone() -> None:
    heldout, most = pairs(40), signs([k < 30 for k in range(40)])
    alone = verdict(exact(heldout, [most, most, most, most], train=(0.2, 0.5, 0.9, 1.4)))
    (text,) = texts(alone, "overfits")
    assert "stops rising at step 10 of 40, and training margins go on from 0.2 to 1.4" in text
    assert alone.decision == "caution"
    behind = exact(heldout, [most, most, most, most], train=(-0.2, -0.3, -0.5, -0.9))
    assert texts(verdict(replace(behind, train=replace(behind.train, margins=-behind.train.margins))), "overfits")
    assert "expect it to overfit" not in " ".join(texts(verdict(behind), "overfits"))  # training pairs are not right
    together = verdict(exact(heldout, [most, 3 * most, 6 * most, 9 * most], train=(0.1, 0.15, 0.2, 0.25)))
    assert texts(together, "overfits") == ["Held-out accuracy stops rising at step 10 of 40: about as many would do."]
    growing = [signs([k < 30 + 2 * step for k in range(40)]) for step in range(4)]
    assert (
        "still rises at step 40" in texts(verdict(exact(heldout, growing, train=(0.1, 0.2, 0.3, 0.4))), "overfits")[0]
    )


def test_length_and_falling_chosen_responses_are_reasons_where_they_are_most() -> None:
    heldout, most = pairs(40), signs([k < 30 for k in range(40)])

    def length(left: float, low: float) -> dict[str, Any]:
        return {
            "margin": {"value": 0.2, "low": 0.1, "high": 0.3},
            "length_controlled_margin": {"value": left, "low": low, "high": 0.3},
        }

    by_length = verdict(exact(heldout, [most]), length(0.02, -0.1))
    assert texts(by_length, "length") == [
        "90% of the mean held-out margin of 0.2 comes from length: without it 0.02 is left, which may be chance."
    ]
    assert texts(verdict(exact(heldout, [most]), length(0.15, 0.1)), "length") == []
    down = torch.stack([0 * most, -torch.ones(40, dtype=torch.float64)])
    assert "100% of held-out pairs" in texts(verdict(exact(heldout, [most], chosen=down)), "displaced")[0]
    assert texts(verdict(exact(heldout, [most], chosen=-down)), "displaced") == []


def test_a_run_that_diverges_is_stopped_and_nothing_else_is_said() -> None:
    found = verdict(exact(pairs(4), [torch.full((4,), math.nan, dtype=torch.float64)]))
    assert [(reason.rule, reason.decision) for reason in found.reasons] == [("diverged", "stop")]


def fitted(accuracy: Estimate, count: int = 100, length: float = 4e-4, far: tuple[str, ...] = ()) -> TrainedForecast:
    plain = exact(pairs(count), [signs([k < accuracy.value * count for k in range(count)])])
    nothing = Estimate(0.0, 0.0, 0.0)
    band = Band((nothing, accuracy), (nothing, Estimate(0.1, 0.05, 0.2)))
    return TrainedForecast(
        **vars(plain), bands={"": band, "topic-0": band}, low=plain.heldout.margins, high=plain.heldout.margins,
        draws=torch.tensor([[0.0, accuracy.value]] * 10), worst={"topic-0": 1.0}, spectrum=None, length=length,
        tested=(3e-4, 6e-4), constants=package_constants(), order=None,
        validity=Validity(package_calibration(), "same", 1.0, (1, 1), length, (), far),
    )  # fmt: skip


def test_of_a_fitted_forecast_both_errors_widen_the_interval() -> None:
    found = verdict(fitted(Estimate(0.7, 0.64, 0.76))).overall
    drawn = proportion(70, 100)
    wider = 1.959964 / 1.644854
    assert found.low == pytest.approx(0.7 - math.hypot(0.06 * wider, 0.7 - drawn.low), abs=1e-6)
    assert found.high == pytest.approx(0.7 + math.hypot(0.06 * wider, drawn.high - 0.7), abs=1e-6)
    doubtful = verdict(fitted(Estimate(0.6, 0.45, 0.75)))
    assert "a pilot narrows it down" in texts(doubtful, "accuracy")[0]
    assert doubtful.as_dict()["accuracy"]["needed"] is None


def test_a_path_that_no_run_behind_the_constants_had_is_a_reason() -> None:
    assert not any("add up to" in text for text in texts(verdict(fitted(Estimate(0.9, 0.85, 0.95))), "untested"))
    beyond = verdict(fitted(Estimate(0.9, 0.85, 0.95), length=4e-3))
    assert any("add up to 0.004" in text for text in texts(beyond, "untested"))
    assert beyond.decision == "caution"


def test_a_calibration_of_another_model_is_a_reason() -> None:
    far = verdict(fitted(Estimate(0.9, 0.85, 0.95), far=("it is of another model (smollm2)",)))
    assert any("doubled: it is of another model (smollm2)" in text for text in texts(far, "untested"))
    assert far.decision == "caution"


def row(value: float, low: float, high: float, rate: float, beyond: bool = False) -> dict[str, Any]:
    return {"learning_rate": rate, "heldout_accuracy": {"value": value, "low": low, "high": high}, "beyond": beyond}


def test_of_a_sweep_the_best_is_named_with_those_not_told_from_it() -> None:
    low, middle, best = row(0.55, 0.5, 0.6, 1e-6), row(0.78, 0.72, 0.83, 1e-5), row(0.8, 0.75, 0.85, 2e-5, True)
    found = best_of("learning_rate", [low, middle, best])
    assert (found["best"], found["beyond_noise"], found["level_with"]) == (2e-5, False, [1e-5])
    assert "no difference shown to 1e-05, and better than 1e-06. No run behind the forecast" in found["says"]
    assert "went as far as with 2e-05" in found["says"]
    assert best_of("learning_rate", [low, best])["beyond_noise"] is True
    assert "No difference shown" in best_of("learning_rate", [middle, best])["says"]
    assert "no other value" in best_of("learning_rate", [best])["says"]


def test_the_terminal_begins_with_the_decision_and_the_severest_reason() -> None:
    first, second, *_ = verdict_lines(of_share(62, 120).as_dict())
    assert first == "Verdict: STOP"
    assert second.startswith("  stop     Held-out accuracy")
    assert replace(of_share(88, 120)).decision == "go"
