"""`--eval_data` and `--stop_if` of train and forecast: files, page and tables; stopped, gone on with, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.helpers import persona_rows, run

Words = tuple[object, ...]


@pytest.fixture(scope="module")
def common(model_folder: Path, data_folder: Path) -> Words:
    return (
        data_folder, "--model", model_folder, "--train", "head", "--max_steps", 4, "--learning_rate", 0.5,
        "--optimizer", "sgd", "--eval_steps", 2, "--per_device_train_batch_size", 8,
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_stops_says_so_and_goes_on_and_the_forecast_foresaw_it(common: Words, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("I like the rain and tea, and songs on the stairs.\n" * 30)
    others = tmp_path / "others.jsonl"
    others.write_text("".join(json.dumps(row) + "\n" for row in persona_rows("patience", 8)))
    measured = ("--eval_data", f"words={text}", "--eval_data", others)
    assert run("forecast", *common, *measured, "--out", tmp_path / "forecast").status == 0
    foreseen = rows(tmp_path / "forecast")
    train = ("train", *common, *measured, "--effects_budget", 0, "--no_save_model", "--out", tmp_path / "run")
    stopped = run(*train, "--stop_if", "effects/kl>0")
    assert (stopped.status, stopped.err) == (0, "")
    assert "Stopped early: effects/kl is" in stopped.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["results"]["stopped"]["step"] == rows(tmp_path / "run")[-1]["step"] == 2
    again = run(*train, "--stop_if", "effects/kl>0")
    assert "This run stopped at step 2, as --stop_if says" in again.out
    assert run(*train).status == 0
    ours = rows(tmp_path / "run")
    assert [row["step"] for row in ours] == [0, 2, 4]
    for mine, row in zip(foreseen, ours, strict=True):
        for name in ("effects/kl", "effects/perplexity", "effects/others/rewards/margins", "effects/chosen_logps"):
            assert mine[name] == pytest.approx(row[name], abs=1e-5, rel=1e-3), (name, row["step"])
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert "stopped" not in results
    assert results["effects"]["kl"]["low"] <= results["effects"]["kl"]["value"] <= results["effects"]["kl"]["high"]
    assert [*results["effects"]["sets"]["others"]["concepts"]] == ["others"]
    for folder in ("forecast", "run"):
        page = (tmp_path / folder / "report.html").read_text()
        assert "What else changes" in page
        assert "Concepts that are not in the training data" in page


@pytest.mark.parametrize(
    "words, reason",
    [
        (("--eval_data", "no-such-thing"), "'no-such-thing': no such file"),
        (("--eval_data", "builtin", "--eval_data", "builtin"), "two sets are called builtin"),
        (("--stop_if", "effects/kl>0.5"), "effects/... are measured with --eval_data"),
        (("--stop_if", "eval_loss"), "give a metric, > or <, and a number"),
        (("--stop_if", "eval_los<1"), "did you mean eval_loss?"),
    ],
)
def test_what_cannot_be_measured_or_stopped_at_is_refused(
    words: Words, reason: str, common: Words, tmp_path: Path
) -> None:
    done = run("train", *common, *words, "--out", tmp_path / "out")
    (line,) = done.err.splitlines()
    assert done.status == 2
    assert reason in line
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_fitted_forecast_refuses_in_a_line(common: Words, tmp_path: Path) -> None:
    done = run("forecast", *common, "--train", "all", "--eval_data", "builtin", "--out", tmp_path / "out")
    (line,) = done.err.splitlines()
    assert done.status == 2
    assert "foreseen with --train head alone" in line
