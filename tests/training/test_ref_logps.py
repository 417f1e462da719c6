"""Does TRL take our reference log-probabilities for its own? Exported, read by TRL, compared step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from trl import DPOConfig, DPOTrainer

from margincast.errors import InputError
from margincast.passes.response_pass import response_pass
from margincast.passes.tokenize import encode
from margincast.records import Pair, PairSet
from margincast.trl import PackedDPOTrainer
from tests.cli.helpers import run, write_rows
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tolerances import TOLERANCE, error
from tests.training.test_trl_parity import some_pairs

STEPS, MAX_LENGTH = 3, 32


class GivenReference(DPOTrainer):
    """As docs/trl.md has it."""

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset


class NoReference(GivenReference):
    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        raise AssertionError("the reference was computed again")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def standard() -> Iterator[dict[str, Any]]:
    for pair in some_pairs(12):
        yield {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def conversational() -> Iterator[dict[str, Any]]:
    for row in standard():
        sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        yield {"prompt": [{"role": "user", "content": row["prompt"]}], **sides}


def export(rows: Iterator[dict[str, Any]], model_folder: Path, folder: Path, name: str) -> Path:
    data, target = write_rows(folder / "pairs.jsonl", list(rows)), folder / name
    words = (data, "--model", model_folder, "--max_length", MAX_LENGTH, "--cache_dir", folder / "cache")
    done = run("inspect", *words, "--eos", "--export_reference", target, "--out", folder / "inspect", "--quiet")
    assert done.status == 0, done.err
    return target


def read(path: Path) -> Dataset:
    kind = {".jsonl": "json", ".parquet": "parquet"}[path.suffix]
    return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(path.parent / "datasets"))


def trained(model_folder: Path, folder: Path) -> Path:
    """What `train` leaves for TRL beside its run of the same pairs."""
    data = write_rows(folder / "pairs.jsonl", list(standard()))
    words = (data, "--model", model_folder, "--max_length", MAX_LENGTH, "--cache_dir", folder / "cache", "--quiet")
    done = run("train", *words, "--max_steps", 1, "--no_save_model", "--out", folder / "run")
    assert done.status == 0, done.err
    return folder / "run" / "references.jsonl"


def log(trainer: type[DPOTrainer], rows: Dataset, folder: Path) -> list[dict[str, Any]]:
    settings = DPOConfig(
        output_dir=str(folder),
        precompute_ref_log_probs=True,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        max_length=MAX_LENGTH,
        seed=3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    made = trainer(model=tiny_model(), args=settings, train_dataset=rows, processing_class=tiny_tokenizer())
    made.train()
    return [row for row in made.state.log_history if "loss" in row]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"], ids=["jsonl", "parquet"])
@pytest.mark.parametrize("shape", [standard, conversational])
def test_trl_trains_on_them_as_on_its_own(shape: Any, name: str, model_folder: Path, tmp_path: Path) -> None:
    rows = read(export(shape(), model_folder, tmp_path, f"out/{name}"))
    assert set(rows["split"]) == {"train", "heldout"}
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in shape()]
    ours = log(NoReference, rows, tmp_path / "ours")
    theirs = log(DPOTrainer, rows.select_columns(["prompt", "chosen", "rejected"]), tmp_path / "theirs")
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
    assert abs(theirs[-1]["rewards/margins"]) > 1e-3


def test_packed_trainer_takes_those_that_a_run_left(model_folder: Path, tmp_path: Path) -> None:
    """As docs/trainers.md has it: the run's own file, one argument, and no pass of the reference but a check."""
    passes = []

    class Counted(PackedDPOTrainer):
        def compute_ref_log_probs(self, *arguments: Any) -> Any:
            passes.append(len(arguments[-1]["input_ids"]) // 2)
            return super().compute_ref_log_probs(*arguments)

    path = trained(model_folder, tmp_path)
    rows = read(path)
    ours = log(Counted, rows, tmp_path / "ours")
    assert passes == [4]
    theirs = log(DPOTrainer, rows.select_columns(["prompt", "chosen", "rejected"]), tmp_path / "theirs")
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("loss", "rewards/chosen", "rewards/margins", "logps/chosen", "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), key

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    pairs = PairSet(tuple(Pair(str(k), "c", row["prompt"], row["chosen"], row["rejected"], "p", k) for k, row in
                          enumerate(lines)))  # fmt: skip
    encoded = encode(pairs, tiny_tokenizer(), eos=True, max_length=MAX_LENGTH).rows
    with torch.no_grad():
        padded = response_pass(tiny_model(), encoded, packed=False)
    for column, logps in (("ref_chosen_logps", padded.chosen), ("ref_rejected_logps", padded.rejected)):
        written = torch.tensor([row[column] for row in lines])
        assert error(written, logps) < TOLERANCE[torch.float32].forward

    lines[1]["ref_rejected_logps"] += 1.0
    with pytest.raises(InputError, match=r"ref_rejected_logps of the train data are not this .*, 1 away"):
        log(PackedDPOTrainer, read(write_rows(tmp_path / "shifted.jsonl", lines)), tmp_path / "refused")


def test_wrong_columns_would_be_seen(model_folder: Path, tmp_path: Path) -> None:
    path = export(standard(), model_folder, tmp_path, "pairs.jsonl")
    shifted = [json.loads(line) for line in path.read_text().splitlines()]
    for row in shifted:
        row["ref_chosen_logps"] += 1.0
    first = log(NoReference, read(write_rows(tmp_path / "shifted.jsonl", shifted)), tmp_path / "trl")[0]
    assert first["rewards/chosen"] == pytest.approx(-0.1, abs=1e-5)  # beta, by default


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--eos", "--export_reference", "pairs.csv"),
            "reference log-probabilities are written to .jsonl or",
        ),
        (("--export_reference", "pairs.jsonl"), "add --eos"),
        (("--no_eos", "--export_reference", "pairs.jsonl"), "add --eos"),
    ],
)
def test_what_trl_could_not_use_is_refused_in_one_line(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "nothing.jsonl", *words, "--out", tmp_path / "out")
    assert done.status == 2
    assert says in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
