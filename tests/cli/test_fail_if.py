"""`--fail-if`: exit status 3 and one line, after everything is written; wrong names before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from margincast.cli.conditions import ConditionHolds, check, conditions_of
from margincast.errors import InputError
from tests.cli.helpers import Outcome, run

Words = tuple[object, ...]


@pytest.fixture(scope="module")
def exact(model_folder: Path, data_folder: Path) -> Words:
    return (
        data_folder, "--model", model_folder, "--train", "head", "--max_steps", 4, "--learning_rate", 0.1,
        "--per_device_train_batch_size", 8, "--json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def forecast_folder(exact: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("forecast") / "out"
    assert run("forecast", *exact, "--out", out).status == 0
    return out


def failed(done: Outcome, *reasons: str) -> dict[str, Any]:
    """The results of a command that exited with status 3 and said why in one line."""
    (line,) = done.err.splitlines()
    assert done.status == 3, done
    assert all(reason in line for reason in reasons), line
    results: dict[str, Any] = json.loads(done.out)["results"]
    return results


def test_a_forecast_fails_when_all_is_written_and_says_every_reason(exact: Words, tmp_path: Path) -> None:
    words = ("--fail-if", "heldout_accuracy <= 1", "--fail-if", "displacement>=0", "--fail-if", "loss>100")
    done = run("forecast", *exact, *words, "--out", tmp_path / "out")
    results = failed(done, "heldout_accuracy is", "'heldout_accuracy <= 1'; displacement is")
    assert "loss is" not in done.err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["results"] == results
    assert (tmp_path / "out" / "report.html").is_file()
    kept = load_file(tmp_path / "out" / "margins.safetensors")
    falls = [(kept[f"{split}_chosen"][-1] < kept[f"{split}_chosen"][0]).double() for split in ("train", "heldout")]
    shares = {"train": float(falls[0].mean()), "heldout": float(falls[1].mean())}
    total = (falls[0].sum() + falls[1].sum()) / (len(falls[0]) + len(falls[1]))
    assert results["displacement"] == pytest.approx({"all": float(total), **shares})
    assert 0 < results["displacement"]["all"] < 1


def test_a_condition_that_does_not_hold_changes_nothing(exact: Words, forecast_folder: Path, tmp_path: Path) -> None:
    done = run("forecast", *exact, "--fail-if", "heldout_accuracy[thrift]<0", "--out", tmp_path / "out")
    assert (done.status, done.err) == (0, "")
    kept = [(folder / "config.yaml").read_text() for folder in (tmp_path / "out", forecast_folder)]
    assert kept[0] == kept[1], "what is asked of a result is no setting of it"


def test_of_one_concept_and_from_a_file(exact: Words, tmp_path: Path) -> None:
    (tmp_path / "ci.yaml").write_text("fail_if: ['heldout_margin[thrift]<1e9', 'train_accuracy<-1']\n")
    done = run("forecast", *exact, "--config", tmp_path / "ci.yaml", "--out", tmp_path / "out")
    value = failed(done, "heldout_margin[thrift] is")["concepts"]["thrift"]["heldout_margin"]["value"]
    assert f"heldout_margin[thrift] is {value:.4g}," in done.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accuracy<1", "heldout_margin, heldout_accuracy, heldout_loss, train_margin, train_accuracy, loss, disp"),
        ("loss[thrift]<1", "loss[thrift] is not known here"),
        ("heldout_margin[greed]<1", "the data have no such concept; use curiosity, thrift, tidiness"),
        ("loss", "give a name, one of < <= > >=, and a limit"),
        ("loss==1", "give a name"),
        ("loss<high", "high is not a number"),
        ("loss<nan", "nothing compares with nan"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(text: str, says: str, exact: Words, tmp_path: Path) -> None:
    done = run("forecast", *exact, "--model", tmp_path / "none", "--fail-if", text, "--out", tmp_path / "out")
    assert done.status == 2
    assert says in done.err
    assert not (tmp_path / "out").exists()


def test_a_fitted_forecast_knows_no_displacement(exact: Words, tmp_path: Path) -> None:
    done = run("forecast", *exact, "--train", "all", "--fail-if", "displacement>0.2", "--out", tmp_path / "out")
    assert done.status == 2
    assert "displacement is not known here; use heldout_margin" in done.err


def test_of_a_fitted_forecast_it_is_the_middle_of_the_interval() -> None:
    results = {"final": {"eval_rewards/accuracies": 0.9}, "heldout_accuracy": [{"value": 0.5}, {"value": 0.7}]}
    conditions = conditions_of(["heldout_accuracy<0.8"], "forecast", {"train": "all"})
    with pytest.raises(ConditionHolds, match=r"heldout_accuracy is 0\.7"):
        check(conditions, results)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_number_that_is_none_fails(value: float | None) -> None:
    conditions = conditions_of(["loss>0.5"], "forecast", {"train": "head"})
    with pytest.raises(ConditionHolds, match="loss is not known"):
        check(conditions, {"final": {"loss": value}})


def test_decompose(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    words = (data_folder, "--model", model_folder, "--max_steps", 4, "--learning_rate", 0.1, "--json")
    out = tmp_path / "all"
    done = run("decompose", *words, "--all", "--fail-if", "displacement>-1", "--out", out)
    failed(done, "displacement is")
    rows = [json.loads(line) for line in (out / "displacement.jsonl").read_text().splitlines()]
    share = sum(row["forecast_delta_logp_chosen"] < 0 for row in rows) / len(rows)
    assert f"displacement is {share:.4g}," in done.err
    with pytest.raises(InputError, match="displacement is not known here; use chosen_rate, rejected_rate, margin_rate"):
        conditions_of(["displacement>0"], "decompose", {"all": False})


def test_attribute(forecast_folder: Path, tmp_path: Path) -> None:
    words = ("--fail-if", "duplicate>=0", "--fail-if", "heldout_accuracy>2")
    done = run("attribute", forecast_folder, "--json", *words, "--out", tmp_path / "out")
    suspects = failed(done, "duplicate is")["suspects"]
    assert f"duplicate is {suspects['counts']['duplicate'] / suspects['pairs']:.4g}," in done.err
    done = run("attribute", forecast_folder, "--fail-if", "dupes>0", "--out", tmp_path / "other")
    assert done.status == 2
    assert "use heldout_margin, heldout_accuracy, " in done.err
    assert not (tmp_path / "other").exists()
