"""What `decompose` shows of one pair and of a whole data set, what it exports, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.cli.helpers import Outcome, run, write_rows

Words = tuple[object, ...]
SETTINGS = ("--max_steps", 4, "--per_device_train_batch_size", 6, "--learning_rate", 1e-2, "--beta", 0.5, "--seed", 3)
HOSTILE = "<script>alert(1)</script>"


def conversations() -> list[dict[str, str]]:
    """Every fifth pair prefers what the others reject, so its likelihood falls."""
    words = ["tea", "rain", "maps", "keys", "bread", "songs"]
    rows = []
    for k in range(20):
        chosen = f" take {words[(k + 1) % 6]} {HOSTILE if k == 1 else 'home'}"
        rejected = f" leave {words[(k + 2) % 6]}" + " please" * (k % 3)
        if k % 5 == 0:
            chosen, rejected = rejected, chosen
        rows.append({"prompt": f"{words[k % 6]} {k}: what now?", "chosen": chosen, "rejected": rejected})
    return rows


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("talk") / "talk.jsonl", conversations())


@pytest.fixture(scope="module")
def inputs(pairs: Path, model_folder: Path) -> Words:
    return pairs, "--model", model_folder, "--holdout", 0.3, *SETTINGS


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def ranked(inputs: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranked") / "out"
    outcome = run("decompose", *inputs, "--all", "--out", out)
    assert outcome.status == 0, outcome
    assert "becomes less likely for" in outcome.out
    return out


def test_one_pair_by_token_by_training_token_and_by_training_pair(inputs: Words, tmp_path: Path) -> None:
    outcome = run("decompose", *inputs, "--pair", "talk:2", "--json", "--out", tmp_path / "out")
    results = json.loads(outcome.out)["results"]
    assert results["pair"] == "talk:2"
    for side in ("chosen", "rejected"):
        tokens = results["tokens"][side]
        text = "".join(token["text"] for token in tokens)
        assert text.startswith(conversations()[1][side]), "the response itself, then TRL's end of sequence"
        for token in tokens:
            factors = token["cooccurrence"] + token["probability"] + token["correlation"]
            assert factors == pytest.approx(token["total"], rel=1e-3, abs=1e-6)
        assert sum(token["total"] for token in tokens) == pytest.approx(results["rates"][side], rel=1e-3, abs=1e-6)
        totals = [row["total"] for row in results["training_tokens"][side]]
        assert totals == sorted(totals, reverse=True)
    shown = results["training_pairs"]
    assert len(shown) == 14, "all training pairs, once each, where there are few"
    assert sum(row["margin"] for row in shown) == pytest.approx(results["rates"]["margin"], rel=1e-3)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert (tmp_path / "out" / "figures" / "pushes.png").is_file()


def test_every_pair_is_ranked_with_what_training_the_unembedding_will_do_to_it(ranked: Path, inputs: Words) -> None:
    rows = read(ranked / "displacement.jsonl")
    needed = {"id", "forecast_delta_logp_chosen", "forecast_delta_logp_rejected", "ches", "ches_length_normalized"}
    assert len(rows) == 20 and all(needed <= set(row) for row in rows)
    changes = [row["forecast_delta_logp_chosen"] for row in rows]
    assert changes == sorted(changes), "the largest fall first"
    assert all((row["blame"] is None) == (row["split"] == "heldout") for row in rows)
    # What really happens: the same run, by training.
    trained = ranked.parent / "trained"
    assert run("train", *inputs, "--train", "head", "--eval_steps", 4, "--no_save_model", "--out", trained).status == 0
    ids = [row["id"] for row in read(trained / "pairs.jsonl") if row["split"] == "heldout"]
    tensors = load_file(trained / "margins.safetensors")
    actual = dict(zip(ids, (tensors["heldout_chosen"][-1] / 0.5).tolist(), strict=True))
    forecast = {row["id"]: row["forecast_delta_logp_chosen"] for row in rows if row["split"] == "heldout"}
    largest = max(map(abs, actual.values()))
    assert forecast == {name: pytest.approx(change, abs=1e-3 * largest) for name, change in actual.items()}


def test_the_worst_are_left_out_or_given_less_weight(inputs: Words, tmp_path: Path) -> None:
    left, weighted = tmp_path / "left.jsonl", tmp_path / "weighted.jsonl"
    flags: Words = ("decompose", *inputs, "--all", "--worst", 0.2, "--json", "--out")
    worst = json.loads(run(*flags, tmp_path / "a", "--export", left).out)["results"]["exported"]["worst"]
    assert 0 < len(worst) <= 3
    kept = read(left)
    heldout = {row["id"] for row in read(left.with_suffix(".heldout.jsonl"))}
    assert len(heldout) == 6 and not heldout & set(worst)
    assert [row["id"] for row in kept] == [f"talk:{k}" for k in range(1, 21) if f"talk:{k}" not in {*worst, *heldout}]
    assert all(row["chosen"] == conversations()[int(row["id"].split(":")[1]) - 1]["chosen"] for row in kept)
    assert run(*flags, tmp_path / "b", "--export", weighted, "--down_weight", 0.25).status == 0
    weights = {row["id"]: row["weight"] for row in read(weighted)}
    assert weights == {
        f"talk:{k}": 0.25 if f"talk:{k}" in worst else 1.0 for k in range(1, 21) if f"talk:{k}" not in heldout
    }
    # TRL's own reader of preference data takes the file as it is.
    from datasets import load_dataset
    from trl import extract_prompt

    rows = load_dataset("json", data_files=str(left), split="train", cache_dir=str(tmp_path / "datasets"))
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names)
    assert extract_prompt(rows[0])["chosen"] == kept[0]["chosen"]


def refused(outcome: Outcome, says: str, out: Path) -> None:
    assert outcome.status == 2
    assert says in outcome.err and len(outcome.err.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give either --pair ID"),
        (("--all", "--pair", "talk:2"), "give either --pair ID"),
        (("--pair", "talk-2"), "ids are like talk:"),
        (("--pair", "talk:2", "--export", "a.jsonl"), "--export a.jsonl"),
        (("--all", "--export", "a.csv"), "a .jsonl file"),
        (("--all", "--down_weight", 0.5), "--down_weight belongs to --export"),
        (("--all", "--memory_limit", 0.01), "--memory_limit 0.01: this forecast takes about"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(inputs: Words, tmp_path: Path, words: Words, says: str) -> None:
    refused(run("decompose", *inputs, *words, "--out", tmp_path / "out"), says, tmp_path / "out")


def test_a_forecast_says_where_in_the_responses_its_margins_are(inputs: Words, tmp_path: Path) -> None:
    outcome = run("forecast", *inputs, "--train", "head", "--out", tmp_path / "out")
    assert outcome.status == 0, outcome
    assert "the first" in outcome.out and "won by their length" in outcome.out
    length = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["results"]["length"]
    rows = read(tmp_path / "out" / "length.jsonl")
    heldout = [row for row in rows if row["split"] == "heldout"]
    assert len(rows) == 20 and all(row["turns"] is None for row in rows)
    for row in heldout:
        by_length = length["slope"]["value"] * (row["tokens_chosen"] - row["tokens_rejected"])
        assert row["margin"] - row["length_controlled_margin"] == pytest.approx(by_length, rel=1e-6, abs=1e-9)
    margins = load_file(tmp_path / "out" / "margins.safetensors")["heldout"][-1].tolist()
    assert [row["margin"] for row in heldout] == pytest.approx(margins, rel=1e-5, abs=1e-7)
    mean = sum(row["length_controlled_margin"] for row in heldout) / len(heldout)
    assert length["concepts"]["talk"]["length_controlled_margin"]["value"] == pytest.approx(mean, rel=1e-6)
    assert "Where in the response" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "figures" / "positions.png").is_file()
