"""Whole commands on a tiny model: the files and keys of the contract, repetition, continuation, equality."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.cli.helpers import CONCEPTS, Outcome, run, run_program, write_rows

SETTINGS = ("--max_steps", 6, "--eval_steps", 2, "--per_device_train_batch_size", 16, "--learning_rate", "1e-3")
RUN_FILES = {
    "config.yaml",
    "summary.json",
    "metrics.jsonl",
    "margins.safetensors",
    "pairs.jsonl",
    "features.safetensors",
    "features.manifest.json",
    "report.html",
    "figures/curves.svg",
    "figures/curves.png",
}
INTERVAL = {"value", "low", "high"}

Words = tuple[object, ...]


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = strict_json((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def margins(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "margins.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def succeed(*words: object) -> Outcome:
    outcome = run(*words)
    assert (outcome.status, outcome.err) == (0, "")
    return outcome


@pytest.fixture(scope="module")
def inputs(model_folder: Path, data_folder: Path) -> Words:
    return data_folder, "--model", model_folder


@pytest.fixture(scope="module")
def runs(inputs: Words, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one finished run of each kind, made when it is first asked for."""
    root = tmp_path_factory.mktemp("runs")
    made: dict[str, Path] = {}
    words: dict[str, Words] = {
        "inspect": ("inspect", *inputs),
        "forecast": ("forecast", *inputs, "--train", "head", *SETTINGS),
        "train-all": ("train", *inputs, *SETTINGS),
        "train-head": ("train", *inputs, "--train", "head", *SETTINGS),
    }

    def folder(name: str) -> Path:
        if name == "compare":
            words[name] = ("compare", folder("forecast"), folder("train-all"))
        if name not in made:
            succeed(*words[name], "--out", root / name)
            made[name] = root / name
        return made[name]

    return folder


@pytest.mark.parametrize("name", ["forecast", "train-all", "train-head"])
def test_a_run_leaves_every_file_and_key_of_the_contract(name: str, runs: Callable[[str], Path]) -> None:
    folder = runs(name)
    expected = RUN_FILES | ({"train_log.jsonl"} if name != "forecast" else set())
    assert expected <= set(contents(folder))
    assert not [path for path in contents(folder) if ".part" in path or path.startswith("state")]

    summary = summary_of(folder)
    assert {"schema_version", "command", "config", "environment", "data", "model", "results"} <= summary.keys()
    assert summary["command"] == name.partition("-")[0]
    assert summary["config"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert summary["data"]["concepts"] == {concept: {"train": 22, "heldout": 2} for concept in sorted(CONCEPTS)}
    results, rows = summary["results"], rows_of(folder / "metrics.jsonl")
    assert results["final"] == rows[-1]
    assert results["seconds"] > 0
    assert results["peak_memory_bytes"] > 1e6
    assert set(results["concepts"]) == set(CONCEPTS)
    for concept in results["concepts"].values():
        assert concept["heldout_margin"].keys() == concept["heldout_accuracy"].keys() == INTERVAL

    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    prefixes = ("", "eval_", *(f"eval_{concept}_" for concept in CONCEPTS))
    names = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "loss")
    assert all(row.keys() >= {prefix + name for prefix in prefixes for name in names} for row in rows)

    tensors, pairs = margins(folder), rows_of(folder / "pairs.jsonl")
    assert tensors["steps"].tolist() == [0, 2, 4, 6]
    assert tensors["train"].shape == tensors["train_chosen"].shape == (4, 66)
    assert tensors["heldout"].shape == tensors["heldout_chosen"].shape == (4, 6)
    assert [pair["split"] for pair in pairs] == ["train"] * 66 + ["heldout"] * 6
    assert {"id", "split", "concept", "source", "line", "prompt", "chosen", "rejected"} <= pairs[0].keys()


@pytest.mark.parametrize("name", ["forecast", "train-all", "train-head"])
def test_before_the_first_step_every_margin_is_zero(name: str, runs: Callable[[str], Path]) -> None:
    tensors = margins(runs(name))
    assert all(not tensors[split][0].any() for split in ("train", "heldout", "train_chosen", "heldout_chosen"))
    assert tensors["train"][-1].all(), "every margin has moved by the last step"
    start = rows_of(runs(name) / "metrics.jsonl")[0]
    losses = [value for key, value in start.items() if key.endswith("loss")]
    assert losses == pytest.approx([math.log(2)] * 5, abs=1e-12)
    assert {value for key, value in start.items() if "rewards" in key} == {0.0}


def test_inspect_leaves_the_keys_of_the_contract(runs: Callable[[str], Path]) -> None:
    folder = runs("inspect")
    figures = {
        f"figures/cosines-{side}.{kind}" for side in ("matching", "non-matching", "both") for kind in ("svg", "png")
    }
    assert {"config.yaml", "summary.json", "features.safetensors", "report.html"} | figures <= set(contents(folder))
    results = summary_of(folder)["results"]
    assert results["concepts"] == sorted(CONCEPTS)
    for matrix in (results["cosine_raw"], results["cosine_centred"]):
        assert [len(row) for row in matrix] == [3, 3, 3]
    assert results["max_token_count"] == 3, "all three concepts answer with the same two tokens"
    assert results["interacting_concepts"] == 2
    assert min(results["shared_norm"], results["noise"], results["effective_dimension"]) > 0
    assert results["conditions"]
    assert all({"name", "left", "right", "holds"} <= condition.keys() for condition in results["conditions"])


def test_compare_leaves_the_keys_of_the_contract(runs: Callable[[str], Path]) -> None:
    folder = runs("compare")
    figures = {f"figures/{name}.{kind}" for name in ("curves", "margins") for kind in ("svg", "png")}
    assert {"config.yaml", "summary.json", "report.html"} | figures <= set(contents(folder))
    results = summary_of(folder)["results"]
    a, b = (margins(runs(name))["heldout"][-1].double() for name in ("forecast", "train-all"))
    assert results["heldout"]["max_abs_difference"] == pytest.approx(float((a - b).abs().max()))
    assert results["heldout"]["mean_abs_difference"] == pytest.approx(float((a - b).abs().mean()))
    assert -1 <= results["heldout"]["spearman"] <= 1
    assert -1 <= results["heldout"]["pearson"] <= 1
    assert set(results["concepts"]) == set(CONCEPTS)
    assert all(agreement.keys() == results["heldout"].keys() for agreement in results["concepts"].values())


@pytest.mark.parametrize("name", ["inspect", "forecast", "train-all", "compare"])
def test_report_writes_one_page(name: str, runs: Callable[[str], Path], tmp_path: Path) -> None:
    folder = runs(name)
    assert succeed("report", folder, "--out", tmp_path).out == f"{tmp_path / 'report.html'}\n"
    assert succeed("report", folder, "--out", tmp_path / "page.html", "--quiet").out == ""
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "page.html").read_text(encoding="utf-8") == (folder / "report.html").read_text("utf-8")
    assert "data:image/svg+xml;base64," in page


def test_report_with_json_prints_the_summary(runs: Callable[[str], Path]) -> None:
    assert strict_json(succeed("report", runs("forecast"), "--json").out) == summary_of(runs("forecast"))


@pytest.mark.parametrize("name", ["forecast", "train-all", "train-head"])
def test_config_repeats_a_run(name: str, runs: Callable[[str], Path], tmp_path: Path) -> None:
    folder, again = runs(name), tmp_path / "again"
    succeed(name.partition("-")[0], "--config", folder / "config.yaml", "--out", again, "--quiet")
    first, second = margins(folder), margins(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (again / "config.yaml").read_text() == (folder / "config.yaml").read_text()


def test_config_repeats_a_run_of_personas(data_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    words = ("persona:thrift", "--persona-dir", data_folder, "--model", model_folder, "--max_steps", 2)
    succeed("forecast", *words, "--out", tmp_path / "a")
    succeed("forecast", "--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b")
    assert torch.equal(margins(tmp_path / "a")["heldout"], margins(tmp_path / "b")["heldout"])


def test_flags_beat_the_file(inputs: Words, tmp_path: Path) -> None:
    data, _, model = inputs
    file = tmp_path / "settings.yaml"
    file.write_text(f"data: {data}\nmodel: {model}\nmax-steps: 2\nbeta: 0.5\nlearning_rate: 1e-3\nquiet: true\n")
    outcome = succeed("forecast", "--config", file, "--beta", "0.25", "--out", tmp_path / "out")
    assert outcome.out == ""
    config = summary_of(tmp_path / "out")["config"]
    assert (config["max_steps"], config["beta"], config["learning_rate"]) == (2, 0.25, 1e-3)


def test_hyphens_are_underscores(inputs: Words, tmp_path: Path) -> None:
    for sign in "-_":
        flags = [f"--{name.replace('_', sign)}" for name in ("max_steps", "learning_rate", "no_eos", "eval_steps")]
        succeed("forecast", *inputs, flags[0], 3, flags[1], "1e-3", flags[2], flags[3], 3, "--out", tmp_path / sign)
    assert summary_of(tmp_path / "-")["config"] == summary_of(tmp_path / "_")["config"]
    assert torch.equal(margins(tmp_path / "-")["train"], margins(tmp_path / "_")["train"])


@pytest.mark.parametrize("command", ["inspect", "forecast", "train", "compare"])
def test_json_prints_the_summary_and_nothing_else(
    command: str, inputs: Words, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    words: Words = (*inputs, "--max_steps", 1) if command in ("forecast", "train") else inputs
    if command == "compare":
        words = (runs("forecast"), runs("train-all"))
    outcome = succeed(command, *words, "--json", "--out", tmp_path / "out")
    assert strict_json(outcome.out) == summary_of(tmp_path / "out")


def test_json_is_json_where_an_interval_has_no_ends(data_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    """One held-out pair has no bootstrap interval: null, where Python would write NaN; and the page can be written."""
    two = tmp_path / "two.jsonl"
    two.write_text("".join((data_folder / "thrift.jsonl").read_text().splitlines(keepends=True)[:2]))
    words = (two, "--model", model_folder, "--max_steps", 2, "--eval_steps", 2)
    outcome = succeed("forecast", *words, "--json", "--out", tmp_path / "a")
    assert strict_json(outcome.out)["results"]["concepts"]["two"]["heldout_margin"]["low"] is None
    succeed("train", *words, "--out", tmp_path / "b")
    outcome = succeed("compare", tmp_path / "a", tmp_path / "b", "--json", "--out", tmp_path / "c")
    assert strict_json(outcome.out)["results"]["heldout"]["spearman"] is None


def test_prompts_may_hold_any_separator(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Is\u2028it\x85 {k}?", "chosen": " Yes", "rejected": " No"} for k in range(10)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    succeed("forecast", data, "--model", model_folder, "--max_steps", 1, "--out", tmp_path / "run")
    succeed("compare", tmp_path / "run", tmp_path / "run", "--out", tmp_path / "compare")


def test_quiet_prints_nothing_even_when_a_model_is_saved(inputs: Words, tmp_path: Path) -> None:
    outcome = run_program("train", *inputs, "--max_steps", 1, "--quiet", "--out", tmp_path / "out")
    assert outcome == Outcome(0, "", "")
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", "1e-3"), ("adam", "1e-2"), ("sgd", "0.5"), ("gd", "0.5")])
def test_forecast_is_training_of_the_head(optimizer: str, rate: str, inputs: Words, tmp_path: Path) -> None:
    words = (*inputs, "--optimizer", optimizer, "--learning_rate", rate, "--beta", 0.1, "--max_steps", 8)
    words = (*words, "--eval_steps", 3, "--per_device_train_batch_size", 16, "--seed", 0, "--quiet")
    succeed("forecast", *words, "--train", "head", "--out", tmp_path / "forecast")
    succeed("train", *words, "--train", "head", "--no_save_model", "--out", tmp_path / "train")
    forecast, training = margins(tmp_path / "forecast"), margins(tmp_path / "train")
    assert forecast["steps"].tolist() == training["steps"].tolist() == [0, 3, 6, 8]
    for split in ("train", "heldout", "train_chosen", "heldout_chosen"):
        largest = float(training[split].abs().max())
        assert largest > 0
        assert float((forecast[split] - training[split]).abs().max()) <= 1e-4 * largest


@pytest.mark.parametrize("eos", ["--eos", "--no_eos"])
def test_forecast_is_training_of_the_head_for_responses_of_many_tokens(
    eos: str, model_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Is it {k}?", "chosen": f" Yes, it is {k % 5}", "rejected": " Not at all"[: 5 + k % 6]}
        for k in range(30)
    ]
    path = write_rows(tmp_path / "many.jsonl", rows)
    words = (path, "--model", model_folder, eos, "--learning_rate", 1e-2, "--beta", 0.1, "--max_steps", 6)
    words = (*words, "--eval_steps", 3, "--per_device_train_batch_size", 8, "--weight_decay", 0.1, "--quiet")
    succeed("forecast", *words, "--train", "head", "--out", tmp_path / "forecast")
    succeed("train", *words, "--train", "head", "--no_save_model", "--out", tmp_path / "train")
    forecast, training = margins(tmp_path / "forecast"), margins(tmp_path / "train")
    for split in ("train", "heldout", "train_chosen", "heldout_chosen"):
        largest = float(training[split].abs().max())
        assert largest > 0.01
        assert float((forecast[split] - training[split]).abs().max()) <= 1e-4 * largest


@pytest.mark.parametrize("what", ["all", "head"])
def test_an_interrupted_training_goes_on_where_it_stopped(
    what: str, inputs: Words, runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from margincast.training.trainer import MarginTrainer

    compute_loss = MarginTrainer.compute_loss
    batches: list[int] = []

    def counted(stop_at: int) -> Callable[..., Any]:
        def compute(self: Any, *arguments: Any, **named: Any) -> Any:
            if self.state.global_step not in batches:  # one call for every pack
                batches.append(self.state.global_step)
            if self.state.global_step == stop_at:
                raise KeyboardInterrupt
            return compute_loss(self, *arguments, **named)

        return compute

    out = tmp_path / "out"
    words = ("train", *inputs, "--train", what, *SETTINGS, "--out", out)
    monkeypatch.setattr(MarginTrainer, "compute_loss", counted(stop_at=5))
    stopped = run(*words)
    assert stopped.status == 130
    assert stopped.err == "margincast: interrupted; the same command goes on where it stopped\n"
    assert not (out / "summary.json").exists()
    assert batches == [0, 1, 2, 3, 4, 5]

    batches.clear()
    monkeypatch.setattr(MarginTrainer, "compute_loss", counted(stop_at=-1))
    succeed(*words)
    assert batches == [4, 5], "steps before the last checkpoint are not trained again"
    whole, resumed = margins(runs(f"train-{what}")), margins(out)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert set(contents(out)) == set(contents(runs(f"train-{what}")))


def test_a_finished_training_is_not_done_again(
    inputs: Words, runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs("train-all")
    before = contents(folder)
    monkeypatch.setattr("margincast.training.run.train_model", lambda *_, **__: pytest.fail("trained again"))
    outcome = succeed("train", *inputs, *SETTINGS, "--out", folder)
    assert "already finished" in outcome.out
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["forecast", "train-all"])
def test_another_run_does_not_overwrite(name: str, inputs: Words, runs: Callable[[str], Path]) -> None:
    folder = runs(name)
    before = contents(folder)
    outcome = run(name.partition("-")[0], *inputs, *SETTINGS, "--seed", 5, "--out", folder)
    assert outcome.status == 2
    assert outcome.err == (
        f"margincast: error: --out {folder} already holds something else; give another folder, or remove this one\n"
    )
    assert contents(folder) == before


def test_a_folder_of_someone_else_is_left_alone(inputs: Words, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("beta: 0.1\n")
    outcome = run("forecast", *inputs, "--out", tmp_path)
    assert outcome.status == 2
    assert contents(tmp_path) == {"config.yaml": b"beta: 0.1\n"}


def test_debug_shows_the_traceback_and_keeps_the_status() -> None:
    outcome = run("forecast", "no-such.jsonl", "--debug")
    assert outcome.status == 2
    assert outcome.err.startswith("Traceback")
    assert outcome.err.splitlines()[-1].startswith("margincast: error: 'no-such.jsonl': no such file")


def test_without_out_a_run_goes_below_runs(inputs: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    succeed("forecast", *inputs, "--max_steps", 1)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("forecast-")
    assert (folder / "summary.json").is_file()
