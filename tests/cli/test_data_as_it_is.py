"""Every command says what it took the data for; inspect shows pairs; held-out pairs of one's own, and leakage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.helpers import run, write_rows

STEPS = ("--train", "head", "--max_steps", 2, "--eval_steps", 2, "--per_device_train_batch_size", 4)


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "chosen": " Yes", "rejected": " No"} for prompt in prompts]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("a.jsonl"), rows(*(f"Item {k}?" for k in range(8))))
    return tmp_path


def test_the_first_line_says_what_was_understood_and_pairs_are_shown(here: Path, model_folder: Path) -> None:
    write_rows(Path("b.jsonl"), rows("Is \x1b[31m it\n so? \u202e", "And?", "Or?"))
    done = run("inspect", "b.jsonl", "--model", model_folder, "--show", 2, "--eos", "--out", "i")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[:2] == ["TRL shape: 3 pairs of text", "3 pairs in 1 concept from b.jsonl"]
    assert "b:1 (training, b) as the model reads it:" in done.out or "b:1 (held out, b)" in done.out
    assert "  prompt    Is <U+001B>[31m it\\n\n             so? <U+202E>\n" in done.out
    assert "  chosen     Yes<|end|>\n" in done.out
    assert "\x1b" not in done.out
    assert "b:2 (" in done.out and "b:3 (" not in done.out
    assert json.loads(Path("i/summary.json").read_text())["data"]["notes"] == ["TRL shape: 3 pairs of text"]


def test_columns_by_other_names(here: Path, model_folder: Path) -> None:
    write_rows(
        Path("b.jsonl"), [{"question": f"Item {k}?", "response_j": " Yes", "response_k": " No"} for k in range(4)]
    )
    refused = run("inspect", "b.jsonl", "--model", model_folder)
    flags = "--prompt_column question --chosen_column response_j --rejected_column response_k"
    assert refused.status == 2 and flags in refused.err
    done = run("inspect", "b.jsonl", "--model", model_folder, *flags.split(), "--show", 0, "--out", "i")
    assert done.status == 0, done.err
    assert "as the model reads it" not in done.out


def test_own_heldout_pairs_are_forecast(here: Path, model_folder: Path) -> None:
    write_rows(Path("b.jsonl"), rows("What?", "Who?"))
    Path("dpo.yaml").write_text("heldout: b.jsonl\n")
    done = run("forecast", "a.jsonl", "--model", model_folder, *STEPS, "--config", "dpo.yaml", "--out", "f")
    assert done.status == 0, done.err
    assert json.loads(Path("f/summary.json").read_text())["data"]["concepts"] == {"a": {"train": 8, "heldout": 2}}
    pairs = [json.loads(line) for line in Path("f/pairs.jsonl").read_text().splitlines()]
    assert [pair["id"] for pair in pairs if pair["split"] == "heldout"] == ["b:1", "b:2"]


def test_a_folder_that_is_split_and_its_other_split(here: Path, model_folder: Path) -> None:
    write_rows(Path("d/train.jsonl"), rows("P", "Q"))
    write_rows(Path("d/test.jsonl"), rows("R"))
    write_rows(Path("d/validation.jsonl"), rows("S", "T"))
    for words, count in (((), 1), (("--dataset_test_split", "validation"), 2)):
        done = run("inspect", "d", "--model", model_folder, *words, "--json", "--out", f"i{count}")
        assert done.status == 0, done.err
        assert json.loads(done.out)["data"]["concepts"] == {"d": {"train": 2, "heldout": count}}


def test_leakage_is_refused_or_counted(here: Path, model_folder: Path) -> None:
    write_rows(Path("b.jsonl"), rows("item  1?", "Who?"))
    words = ("inspect", "a.jsonl", "--model", model_folder, "--heldout", "b.jsonl", "--out", "i")
    refused = run(*words)
    assert refused.status == 2 and not Path("i").exists()
    assert "1 of 2 held-out pairs have a prompt that training pairs have too" in refused.err
    allowed = run(*words, "--allow_leakage")
    assert allowed.status == 0, allowed.err
    assert "1 held-out pairs have a prompt that training pairs have too" in allowed.out
    write_rows(Path("c.jsonl"), rows("P", "p", "Q", "R"))
    done = run("inspect", "c.jsonl", "--model", model_folder, "--out", "c")
    assert "2 pairs have a prompt that another pair has too; the split keeps each prompt on one side" in done.out


def test_two_ways_to_name_heldout_pairs(here: Path, model_folder: Path) -> None:
    done = run("inspect", "a.jsonl", "--model", model_folder, "--heldout", "a.jsonl", "--dataset_test_split", "test")
    assert done.status == 2 and "both name the held-out pairs" in done.err


def test_topics_are_the_concepts_of_data_that_name_none(here: Path, model_folder: Path) -> None:
    themes = ("bake bread", "planet orbit")
    talk = [
        {"prompt": f"Say {themes[k % 2]} {k}?", "chosen": f" good answer {k}", "rejected": f" bad one {k}"}
        for k in range(24)
    ]
    write_rows(Path("b.jsonl"), talk)
    words = ("forecast", "b.jsonl", "--model", model_folder, *STEPS, "--out", "f")
    for wrong, said in (("some", "--topics some: give auto, none or a number"), ("0", "--topics 0")):
        refused = run(*words, "--topics", wrong)
        assert refused.status == 2 and said in refused.err
    done = run(*words, "--topics", 2)
    assert done.status == 0, done.err
    pairs = [json.loads(line) for line in Path("f/pairs.jsonl").read_text().splitlines()]
    concepts = json.loads(Path("f/summary.json").read_text())["results"]["concepts"]
    topics = {pair["concept"] for pair in pairs}
    assert len(topics) == 2 and set(concepts) == {pair["concept"] for pair in pairs if pair["split"] == "heldout"}
    assert {pair["id"] for pair in pairs} == {f"b:{k}" for k in range(1, 25)}
    named = run("forecast", "traits", "--model", model_folder, "--topics", 2)
    assert named.status == 2 and "the pairs have concepts" in named.err
