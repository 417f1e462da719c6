"""The sentences of a forecast of a trained backbone, from the numbers that they say."""

from __future__ import annotations

from typing import Any

from margincast.report.trained import answers_in_words


def results(rising: float, **least: float) -> dict[str, Any]:
    return {
        "stops_rising": {"value": 30.0, "low": 20.0, "high": 60.0},
        "still_rising": rising,
        "more_pairs": None,
        "path": {"length": 6e-4, "tested": [3e-4, 6e-4], "beyond": False},
        "concepts": {name: {"least_accurate": share} for name, share in least.items()},
    }


def test_accuracy_stops_rising_or_it_still_rises() -> None:
    assert answers_in_words(results(0.25), 60) == [
        "Held-out accuracy stops rising around step 30 (90%: 20 to 60); "
        "in 25% of the drawn runs it still rises at step 60."
    ]
    assert answers_in_words(results(0.75), 60) == [
        "Held-out accuracy still rises at step 60, in 75% of the drawn runs."
    ]


def test_concepts_that_lag_about_as_often_are_all_named() -> None:
    alone = answers_in_words(results(0.0, art=0.1, math=0.9), 60)[-1]
    assert alone == "math will lag: it is the least accurate concept in 90% of the drawn runs."
    both = answers_in_words(results(0.0, art=0.48, math=0.49, music=0.03), 60)[-1]
    assert both == "math will lag: it is the least accurate concept in 49% of the drawn runs, art in 48%."
