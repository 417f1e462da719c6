"""`margincast select` from the command line: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.helpers import CONCEPTS, Outcome, persona_rows, run, write_rows

WORDS = ("--learning_rate", 1e-2, "--max_steps", 4, "--per_device_train_batch_size", 8)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of three concepts, with columns that margincast has no use for."""
    rows = [{**row, "topic": c, "untouched": [c, None]} for c in CONCEPTS for row in persona_rows(c)]
    return write_rows(tmp_path_factory.mktemp("select") / "pairs.jsonl", rows)


def chosen_by(pairs: Path, model_folder: Path, out: Path, *words: object) -> Outcome:
    every = ("--model", model_folder, "--concept_column", "topic", "--holdout", 0.25, *WORDS)
    return run("select", pairs, *every, *words, "--out", out)


def test_rules_side_by_side_and_the_rows_as_they_came(pairs: Path, model_folder: Path, tmp_path: Path) -> None:
    done = chosen_by(pairs, model_folder, tmp_path / "s", "--curve", "--rules", "influence,out_of_fold,balanced")
    assert done.status == 0, done.err
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    results = summary["results"]
    assert results["pairs"] == 54 and results["size"] == 27
    assert {"random", "influence", "out_of_fold", "balanced"} <= set(results["rules"])
    for rule in results["rules"].values():
        for name in ("margin", "accuracy"):
            assert rule[name]["low"] <= rule[name]["value"] <= rule[name]["high"]
    rows = [json.loads(line) for line in (tmp_path / "s" / "selection.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"id", "keep", "rule", "value"} and {row["rule"] for row in rows} == {results["picked"]}
    lines = dict(enumerate(pairs.read_text().splitlines(keepends=True), start=1))
    kept = [lines[int(row["id"].rpartition(":")[2])] for row in rows if row["keep"]]
    assert (tmp_path / "s" / "chosen.jsonl").read_text() == "".join(kept) and len(kept) == 27
    for text in results["advice"]:
        assert " ".join(text.split()) in " ".join(done.out.split())
    page = (tmp_path / "s" / "report.html").read_text()
    assert "Which pairs to train on" in page and "How many pairs are enough" in page
    assert run("report", tmp_path / "s").status == 0


def test_the_next_command_trains_on_the_chosen_pairs(pairs: Path, model_folder: Path, tmp_path: Path) -> None:
    """And its held-out pairs are those of the selection, so that its forecast is the rule's worth."""
    done = chosen_by(pairs, model_folder, tmp_path / "s", "--rules", "reference-high")
    assert done.status == 0, done.err
    words = shlex.split(re.search(r"Next: margincast (.*)", done.out)[1])  # type: ignore[index]
    again = run("forecast", *words[1:], "--out", tmp_path / "f")
    assert again.status == 0, again.err
    final = json.loads((tmp_path / "f" / "summary.json").read_text())["results"]["final"]
    worth = json.loads((tmp_path / "s" / "summary.json").read_text())["results"]["rules"]["reference_high"]
    assert final["eval_rewards/accuracies"] == pytest.approx(worth["accuracy"]["value"])
    assert final["eval_rewards/margins"] == pytest.approx(worth["margin"]["value"], rel=1e-6)


def test_keep_of_all_is_the_file(pairs: Path, model_folder: Path, tmp_path: Path) -> None:
    done = chosen_by(pairs, model_folder, tmp_path / "s", "--keep", "54", "--rules", "gap_large")
    assert done.status == 0, done.err
    assert (tmp_path / "s" / "chosen.jsonl").read_bytes() == pairs.read_bytes()


@pytest.mark.parametrize(
    "words, said",
    [
        (("--keep", "0"), "keep at least 1"),
        (("--keep", "55"), "there are 54 training pairs"),
        (("--keep", "1.5"), "a share lies above 0"),
        (("--keep", "half"), "give a share"),
        (("--rules", "influense"), "did you mean influence"),
        (("--rules", "random,"), "a name is empty"),
        (("--for", "nothing"), "no held-out concept"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], said: str, pairs: Path, model_folder: Path, tmp_path: Path) -> None:
    done = chosen_by(pairs, model_folder, tmp_path / "s", *words)
    assert done.status == 2 and said in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_for_a_concept_and_for_a_file(pairs: Path, model_folder: Path, tmp_path: Path) -> None:
    words = ("--rules", "influence,gap_small+balanced")
    done = chosen_by(pairs, model_folder, tmp_path / "c", *words, "--for", "thrift")
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "c" / "summary.json").read_text())["results"]
    assert results["target"] == "thrift" and set(results["rules"]["influence"]["concepts"]) == {"thrift"}
    assert "gap_small+balanced" in results["rules"] and results["judging_pairs"] == 3
    rows = [{**row, "topic": "new", "question": f"New {row['question']}"} for row in persona_rows("new", 8)]
    mine = write_rows(tmp_path / "mine.jsonl", rows)
    done = chosen_by(pairs, model_folder, tmp_path / "f", "--rules", "gap_small", "--for", mine)
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "f" / "summary.json").read_text())["results"]
    assert results["pairs"] == 72 and list(results["rules"]["gap_small"]["concepts"]) == ["new"]


def test_responses_of_many_tokens(model_folder: Path, tmp_path: Path) -> None:
    words = ("good words", "other words number 3", "a long answer", "weather")
    rows = [
        {
            "prompt": f"{k} what?",
            "chosen": f" {words[k % 4]} {k}",
            "rejected": f" {words[(k * 3 + 1) % 4]}",
            "topic": "t",
        }
        for k in range(40)
    ]
    pairs = write_rows(tmp_path / "chat.jsonl", rows)
    done = chosen_by(pairs, model_folder, tmp_path / "s", "--rules", "length_match,influence,out_of_fold,diverse")
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "s" / "summary.json").read_text())["results"]
    assert set(results["rules"]) == {"random", "length_match", "influence", "out_of_fold", "diverse"}
    assert len((tmp_path / "s" / "chosen.jsonl").read_text().splitlines()) == 15


def test_pairs_of_several_files_train_next_too(data_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    """Their rows are written as margincast has them, with the concepts that the file names were."""
    words = ("--model", model_folder, "--holdout", 0.25, "--rules", "reference_high", *WORDS)
    done = run("select", data_folder, *words, "--out", tmp_path / "s")
    assert done.status == 0, done.err
    next_words = shlex.split(re.search(r"Next: margincast (.*)", done.out)[1])  # type: ignore[index]
    again = run("forecast", *next_words[1:], "--out", tmp_path / "f")
    assert again.status == 0, again.err
    results = [json.loads((tmp_path / name / "summary.json").read_text())["results"] for name in ("s", "f")]
    worth = results[0]["rules"]["reference_high"]["concepts"]
    assert results[1]["concepts"].keys() == worth.keys() == set(CONCEPTS)
    for concept, each in worth.items():
        found = results[1]["concepts"][concept]["heldout_margin"]["value"]
        assert found == pytest.approx(each["margin"]["value"], rel=1e-6)
