"""Whatever is wrong is said in one line on stderr, with the right status, and no half-made run is left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import Outcome, persona_rows, run, run_program, write_rows

GOOD = {"prompt": "Is it raining?", "chosen": " No", "rejected": " Yes"}
PERSONA = {"question": "Is it?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}

Words = tuple[object, ...]


def refused(outcome: Outcome, *fragments: str, status: int = 2) -> None:
    """The command failed with `status` and said so in exactly one line that holds every fragment."""
    assert outcome.status == status, outcome
    line, *more = outcome.err.splitlines()
    assert more == []
    assert line.startswith("margincast: error: ")
    assert "error: unexpected " not in line, "that is how a defect is reported"
    assert "Traceback" not in outcome.out
    missing = [fragment for fragment in fragments if fragment not in line]
    assert not missing, f"{line!r} does not say {missing}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def forecast(here: Path, model_folder: Path) -> Callable[..., Outcome]:
    """Runs a forecast that must leave no folder."""

    def command(*words: object) -> Outcome:
        outcome = run("forecast", *words, "--model", model_folder, "--out", "out")
        assert not Path("out").exists()
        return outcome

    return command


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        pytest.param(["{"], ["line 1: not valid JSON"], id="broken JSON"),
        pytest.param(['{"prompt": "a"} {}'], ["line 1: not valid JSON"], id="two objects on a line"),
        pytest.param(["[1, 2]"], ["line 1", "a JSON object is needed, this is a JSON array"], id="array"),
        pytest.param([GOOD, {"prompt": "a", "chosen": "b"}], ["line 2: columns missing"], id="no rejected"),
        pytest.param([PERSONA | {"question": ""}], ["line 1: question is empty"], id="empty question"),
        pytest.param([GOOD | {"chosen": ""}], ["line 1: chosen is empty"], id="empty chosen"),
        pytest.param([GOOD, GOOD | {"rejected": ""}], ["line 2: rejected is empty"], id="empty rejected"),
        pytest.param([GOOD | {"chosen": " Yes"}], ["line 1: chosen and rejected are the same"], id="same responses"),
        pytest.param([GOOD | {"prompt": None}], ["line 1: prompt must be a string"], id="null prompt"),
        pytest.param([GOOD | {"chosen": 3}], ["line 1: chosen must be a string", "got 3"], id="number"),
        pytest.param([GOOD | {"chosen": {"a": 1}}], ["line 1: chosen must be a string"], id="object"),
        pytest.param(
            [GOOD, GOOD | {"prompt": "a" * 300}], ["line 2", "300 tokens", "256"], id="longer than the context"
        ),
        pytest.param([], ["no rows"], id="empty file"),
        pytest.param(["", "", ""], ["no rows"], id="blank lines"),
    ],
)
def test_bad_rows(lines: list[Any], says: list[str], forecast: Callable[..., Outcome]) -> None:
    path = Path("data.jsonl")
    if lines and isinstance(lines[0], str):
        path.write_text("".join(line + "\n" for line in lines))
    else:
        write_rows(path, lines)
    refused(forecast(path), "data", *says)


def test_one_pair_cannot_be_split(forecast: Callable[..., Outcome]) -> None:
    refused(forecast(write_rows(Path("data.jsonl"), [GOOD])), "too few to split; give at least 2")


def test_no_usable_row_is_left(forecast: Callable[..., Outcome]) -> None:
    path = write_rows(Path("data.jsonl"), [GOOD | {"chosen": ""}])
    refused(forecast(path, "--on-bad-row", "skip"), "data.jsonl, line 1", "no usable row is left")


def test_bad_bytes(forecast: Callable[..., Outcome]) -> None:
    Path("data.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    refused(forecast("data.jsonl"), "data.jsonl, line 1: not valid UTF-8")


def test_damaged_tables(forecast: Callable[..., Outcome]) -> None:
    Path("data.parquet").write_bytes(b"no Parquet")
    refused(forecast("data.parquet"), "data.parquet: cannot be read as Parquet")
    Path("data.csv").write_text("a,b\n1,2\n")
    refused(forecast("data.csv"), "data.csv: the first line must be a header")


def test_data_that_are_not_there(forecast: Callable[..., Outcome], data_folder: Path) -> None:
    Path("empty").mkdir()
    Path("data.txt").write_text("hello\n")
    refused(forecast("no-such.jsonl"), "'no-such.jsonl': no such file or folder")
    refused(forecast("empty"), "empty: no .jsonl, .json, .parquet, .arrow, .csv, .tsv files in this folder")
    refused(forecast("data.txt"), "data.txt: unknown extension '.txt'", ".jsonl")
    refused(forecast("persona:thirft", "--persona-dir", data_folder), "no file for 'thirft' (closest: 'thrift')")
    refused(forecast("persona:thrift", "--persona-dir", "nowhere"), "nowhere: no such folder")
    refused(forecast("persona:", "--persona-dir", data_folder), "persona:", "empty name")
    refused(forecast(data_folder, "--concept-column", "theme"), "no row has the concept column 'theme'")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--holdout", 0), ("holdout", "between 0 and 1", "got 0")),
        (("--holdout", 1.5), ("holdout", "between 0 and 1", "got 1.5")),
        (("--holdout", "nan"), ("holdout", "got nan")),
        (("--learning_rate", -1), ("learning_rate", "positive", "got -1")),
        (("--learning_rate", "inf"), ("learning_rate", "positive", "got inf")),
        (("--beta", 0), ("beta", "positive", "got 0")),
        (("--beta", "x"), ("--beta", "number")),
        (("--max_steps", 0), ("max_steps",)),
        (("--per_device_train_batch_size", 0), ("per_device_train_batch_size",)),
        (("--eval_steps", 0), ("eval_steps",)),
        (("--seed", -1), ("seed", "at least 0")),
        (("--seed", 2**32), ("seed", "at most 4294967295, got 4294967296")),
        (("--seed", 1.5), ("--seed",)),
        (("--optimizer", "adagrad"), ("optimizer", "adagrad", "adamw")),
        (("--loss_type", "nonsense"), ("nonsense", "sigmoid")),
        (("--momentum", 0.9, "--optimizer", "adamw"), ("momentum", "adamw")),
        (("--bta", 1), ("--bta", "--beta")),
        (("--beta",), ("--beta", "requires an argument")),
        (("surplus",), ("surplus",)),
        (("--config", "no-such.yaml"), ("config file no-such.yaml cannot be read",)),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["forecast", "train"])
def test_bad_options(
    command: str, words: Words, says: tuple[str, ...], data_folder: Path, model_folder: Path, here: Path
) -> None:
    refused(run(command, data_folder, "--model", model_folder, "--out", "out", *words), *says)
    assert not Path("out").exists()


def test_flow_cannot_train(data_folder: Path, model_folder: Path, here: Path) -> None:
    outcome = run("train", data_folder, "--model", model_folder, "--optimizer", "flow", "--out", "out")
    refused(outcome, "'flow' cannot train", "adamw")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "beta: 0.1\nlerning_rate: 1\nepochs: 2\n",
            ("no option 'lerning_rate' here (did you mean learning_rate?)", "'epochs'"),
        ),
        ("save_model: true\n", ("no option 'save_model'",)),
        ("seed: true\n", ("seed takes no True",)),
        ("bf16: 1\n", ("bf16 takes true or false",)),
        ("beta: 0.1\nbeta: 0.2\n", ("beta is given twice",)),
        ("beta: &b 0.1\nseed: *b\n", ("aliases",)),
        ("beta: [1\n b", ("is not YAML",)),
        ("- beta\n", ("must hold names and values",)),
        ("", ("must hold names and values",)),
        ("1: 2\n", ("must hold names and values",)),
        ("beta: [1, 2]\n", ("beta must be a single value",)),
        ("config: other.yaml\n", ("cannot name another config file",)),
    ],
    ids=str,
)
def test_bad_config_files(
    text: str, says: tuple[str, ...], forecast: Callable[..., Outcome], data_folder: Path
) -> None:
    Path("settings.yaml").write_text(text)
    refused(forecast(data_folder, "--config", "settings.yaml"), "config file settings.yaml", *says)


def test_a_bad_value_in_a_config_file(forecast: Callable[..., Outcome], data_folder: Path) -> None:
    Path("settings.yaml").write_text("seed: 1.7\n")
    refused(forecast(data_folder, "--config", "settings.yaml"), "--seed")


def test_usage(here: Path) -> None:
    refused(run("forcast"), "'forcast'", "forecast")
    refused(run("forecast"), "data")
    refused(run("compare", "a"), "'b'")


def test_bad_model_folders(data_folder: Path, model_folder: Path, here: Path) -> None:
    def forecast(model: object) -> Outcome:
        outcome = run("forecast", data_folder, "--model", model, "--out", "out")
        assert not Path("out").exists()
        return outcome

    Path("empty").mkdir()
    refused(forecast("empty"), "model folder 'empty' has no config.json")
    refused(forecast("./no-such"), "model folder './no-such' does not exist")
    shutil.copytree(model_folder, "damaged")
    Path("damaged/config.json").write_text("{")
    refused(forecast("damaged"), "model 'damaged' cannot be loaded")


def test_an_out_that_is_a_file(data_folder: Path, model_folder: Path, here: Path) -> None:
    Path("file").write_text("mine\n")
    for out in ("file", "file/below"):
        outcome = run("forecast", data_folder, "--model", model_folder, "--out", out)
        refused(outcome, f"--out {out}: file is a file, not a folder")
    assert Path("file").read_text() == "mine\n"


def test_a_loss_that_averages_over_tokens_where_sizes_are_known_of_sums(
    model_folder: Path, data_folder: Path, here: Path
) -> None:
    rows = [{"prompt": f"Is it {k}?", "chosen": " Yes, it is", "rejected": " Not at all"} for k in range(10)]
    path = write_rows(Path("many.jsonl"), rows)
    for pilot in ("0", "0.1", "2"):
        words = (path, "--model", model_folder, "--loss_type", "ipo", "--pilot", pilot, "--out", "out")
        refused(run("forecast", *words), "loss_type 'ipo' divides log-ratios by the length of the response")
    assert not Path("out/summary.json").exists()
    assert run("forecast", data_folder, "--model", model_folder, "--max_steps", 1, "--out", "out").status == 0


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    data = write_rows(folder / "thrift.jsonl", persona_rows("thrift"))
    words = (data, "--model", model_folder, "--max_steps", 2, "--eval_steps", 1)
    assert run("forecast", *words, "--out", folder / "run").status == 0
    return folder / "run"


def test_runs_that_are_not_there(finished: Path, here: Path) -> None:
    Path("empty").mkdir()
    refused(run("compare", finished, "nowhere", "--out", "out"), "run folder nowhere does not exist")
    refused(run("compare", "empty", finished, "--out", "out"), "empty is not a finished forecast or training run")
    refused(run("report", "nowhere"), "nowhere is not a finished run")
    refused(run("report", "empty"), "empty is not a finished run")
    assert not Path("out").exists()
    assert not Path("nowhere").exists()
    assert not list(Path("empty").iterdir())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("summary.json", b"{"),
        ("summary.json", b"[]"),
        ("summary.json", b'{"schema_version": 1, "command": "forecast"}'),
        ("summary.json", b'{"schema_version": 99, "command": "forecast", "config": {}}'),
        ("margins.safetensors", b"\x00" * 40),
        ("pairs.jsonl", b'{"id": 1}\n'),
        ("pairs.jsonl", b""),
        ("pairs.jsonl", None),
    ],
    ids=str,
)
def test_damaged_runs(file: str, content: bytes | None, finished: Path, here: Path) -> None:
    shutil.copytree(finished, "damaged")
    if content is None:
        Path("damaged", file).unlink()
    else:
        Path("damaged", file).write_bytes(content)
    refused(run("compare", finished, "damaged", "--out", "out"), "damaged")
    assert not Path("out").exists()


@pytest.mark.parametrize("file", ["summary.json", "metrics.jsonl", "figures/curves.svg"])
def test_reports_of_damaged_runs(file: str, finished: Path, here: Path) -> None:
    shutil.copytree(finished, "damaged")
    Path("damaged/report.html").unlink()
    Path("damaged", file).unlink()
    refused(run("report", "damaged"), "damaged")
    if file.endswith("json"):
        Path("damaged", file).write_text('{"command": "forecast"}')
        refused(run("report", "damaged"), "damaged")
    assert not Path("damaged/report.html").exists()


def test_runs_with_nothing_in_common(finished: Path, model_folder: Path, here: Path) -> None:
    other = write_rows(Path("tidiness.jsonl"), persona_rows("tidiness"))
    words = ("--model", model_folder, "--max_steps", 2, "--quiet")
    assert run("forecast", other, *words, "--eval_steps", 1, "--out", "other").status == 0
    refused(run("compare", finished, "other", "--out", "out"), "share no held-out pair")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("forecast", "persona:thrift"), ("persona file 'thrift' could not be fetched", "--persona-dir")),
        (("forecast", "nobody/nothing"), ("nobody/nothing:train could not be fetched from the Hub",)),
        (("forecast", "traits", "--model", "nobody/nothing"), ("model 'nobody/nothing' cannot be loaded",)),
    ],
    ids=str,
)
def test_what_needs_the_hub_is_a_stated_failure(words: Words, says: tuple[str, ...], here: Path) -> None:
    outcome = run_program(*words, "--out", "out", HF_HUB_OFFLINE="1", HF_HOME=str(here / "hub"))
    refused(outcome, *says, status=1)
    assert not Path("out").exists()


def test_data_that_are_missing_cost_nothing_that_is_there(data_folder: Path, model_folder: Path, here: Path) -> None:
    """`--no_resume` once removed the folder, a person's own files in it included, before it looked for the data."""
    words = ("--model", model_folder, "--max_steps", 1, "--no_save_model", "--out", "out")
    moved = Path("moved")
    shutil.copytree(data_folder, moved)
    assert run("train", moved, *words).status == 0
    Path("out", "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    moved.rename("gone")
    refused(run("train", moved, *words, "--no_resume"), "moved", "no such file or folder")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    Path("gone").rename(moved)
    assert run("train", moved, *words, "--no_resume").status == 0
    assert Path("out", "notes.txt").read_text() == "mine"


def test_an_export_does_not_take_the_place_of_the_data(data_folder: Path, model_folder: Path, here: Path) -> None:
    Path("pairs.jsonl").write_bytes(next(data_folder.iterdir()).read_bytes())
    before = Path("pairs.jsonl").read_bytes()
    words = ("pairs.jsonl", "--model", model_folder, "--train", "head", "--max_steps", 1)
    assert run("forecast", *words, "--out", "run").status == 0
    refused(run("attribute", "run", "--export", "pairs.jsonl", "--out", "out"), "that is the data themselves")
    assert Path("pairs.jsonl").read_bytes() == before
    assert not Path("out").exists()


def test_a_model_without_some_of_its_weights_is_refused(data_folder: Path, model_folder: Path, here: Path) -> None:
    """They were random once, and other numbers in every process."""
    shutil.copytree(model_folder, "deeper")
    config = json.loads(Path("deeper", "config.json").read_text())
    Path("deeper", "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    outcome = run("forecast", data_folder, "--model", "./deeper", "--train", "head", "--out", "out")
    refused(outcome, "model './deeper' has no model.layers.2", "it is not the model of its config")
    Path("deeper", "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    outcome = run("forecast", data_folder, "--model", "./deeper", "--train", "head", "--out", "out")
    refused(outcome, "has weights its config does not know: model.layers.1")


@pytest.mark.parametrize("command", ["train", "forecast"])
def test_a_launch_by_deepspeed_is_refused_before_anything_is_read(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `accelerate launch` says it, also of a single process."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    outcome = run(command, "no-such-file.jsonl", "--out", "out")
    refused(outcome, "runs under DeepSpeed are not supported", "ZeRO-3", "--config_file examples/paper/fsdp.yaml")
    assert not Path("out").exists()
