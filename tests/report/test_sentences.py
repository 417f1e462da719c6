"""Sentences of reports on cases where they would be false: each says what its own numbers bear out, or nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from margincast.cli.demo import PAIRS
from margincast.cli.job import open_job
from margincast.cli.options import OutputOptions
from margincast.diagnose.kinds import KINDS
from margincast.report.attribution import effect_of_export, read_attribution
from margincast.report.reading import read_responses, read_run
from margincast.report.trained import answers_in_words
from margincast.runs.metrics import taking_all
from tests.report.test_trained import results as of_trained


def of_run(accuracy: float, heldout: int) -> str:
    final = {
        "step": 30, "eval_rewards/accuracies": accuracy, "eval_rewards/margins": 0.1, "eval_loss": 0.69,
        "rewards/accuracies": None, "rewards/margins": None,
    }  # fmt: skip
    data = {"concepts": {"a": {"train": 1, "heldout": heldout}}}
    return " ".join(read_run({"results": {"final": final, "concepts": {}}, "data": data}))


@pytest.mark.parametrize(
    "accuracy, pairs, says",
    [
        (62 / 120, 120, "43% to 60%: not told from chance, 50%"),
        (88 / 120, 120, "65% to 80%: above chance, 50%"),
        (30 / 120, 120, "below chance, 50%"),
        (4 / 6, 6, "30% to 90%: not told from chance, 50%"),
    ],
)
def test_a_share_that_chance_gives_is_not_called_learned(accuracy: float, pairs: int, says: str) -> None:
    text = of_run(accuracy, pairs)
    assert says in text
    assert "learned" not in text


def test_one_response_takes_all_only_where_another_is_wrong_beyond_chance() -> None:
    swept = {"Yes": {"right": 57, "of": 58}, "No": {"right": 5, "of": 62}}
    both = {"Yes": {"right": 57, "of": 58}, "No": {"right": 40, "of": 62}}
    few = {"Yes": {"right": 3, "of": 3}, "No": {"right": 1, "of": 3}}
    assert [taking_all(counts) for counts in (swept, both, few, {})] == ["Yes", None, None, None]
    assert 'of those that prefer "No" 5 of 62. One response takes all' in read_responses(swept)[0]
    assert "takes all" not in read_responses(both)[0]
    assert read_responses({}) == []


def attributed(changed: int) -> dict[str, Any]:
    counts = dict.fromkeys(("mislabel", "duplicate", "conflict", "harm"), 0) | {"unlearnable": 24}
    numbers = {"accuracy": 62 / 120, "margin": 0.1}
    return {
        "suspects": {"counts": counts, "pairs": 360, "settings": {"noise_rate": {"a": 0.0}}},
        "counterfactual": {"changed": changed, "done": "dropped", "now": numbers, "rerun": numbers},
    }


def test_where_nothing_is_changed_nothing_is_said_to_change() -> None:
    nothing, something = (" ".join(read_attribution(attributed(changed))) for changed in (0, 3))
    assert "With 3 pairs dropped held-out accuracy of this forecast would be" in something
    assert "would be" not in nothing
    assert "the exported pairs are the training pairs as they were" in nothing
    assert [len(effect_of_export(attributed(changed))) for changed in (0, 3)] == [0, 1]


def test_unlearnable_is_said_of_the_flow_that_scores_it_and_not_of_the_run() -> None:
    text = " ".join(read_attribution(attributed(0)))
    assert "24 never get a positive margin on the flow that scores them, which is not this run" in text
    assert "not of the run" in KINDS.get("unlearnable").meaning


def test_the_trial_of_two_steps_is_not_said_to_be_of_this_rehearsal() -> None:
    def said(**more: Any) -> str:
        given = {**of_trained(0.9), "concepts": {}, "from_rehearsal_alone": True, "origin": "forecast of all weights"}
        return next(text for text in answers_in_words({**given, **more}, 60) if "many tokens" in text)

    assert "a rehearsal of two steps, as here, missed" in said(rehearsal={"steps": 2, "pairs": 16})
    other = said(rehearsal={"steps": 24, "pairs": 96})
    assert "as here" not in other
    assert "(this one has 24)" in other
    assert "Compare --pilot 0." in other
    assert "--pilot 0" not in said(origin="forecast of training a LoRA adapter")  # which features alone cannot


def test_seconds_of_a_stage_count_from_its_own_start(tmp_path: Any) -> None:
    job = open_job("demo", OutputOptions(out=tmp_path / "demo", quiet=True), PAIRS)
    time.sleep(0.05)
    stage = job.stage("forecast", "forecast", PAIRS)
    assert stage.seconds < 0.04 < job.seconds
