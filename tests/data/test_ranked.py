"""Ranked answers give their best and worst."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from margincast.data import load_pairs
from margincast.errors import InputError


def written(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def answers(*ranks: object) -> list[dict[str, object]]:
    return [{"answer": f" answer {k}", "model": "some", "rank": rank} for k, rank in enumerate(ranks)]


def test_the_best_answer_is_chosen_and_the_worst_rejected(tmp_path: Path) -> None:
    pairs = load_pairs(written(tmp_path, {"prompt": "Which?", "answers": answers(3.0, 1.0, 7.0, 2.0)}))
    assert (pairs[0].prompt, pairs[0].chosen, pairs[0].rejected) == ("Which?", " answer 1", " answer 2")
    assert any("of ranked answers the first is chosen and the last rejected" in note for note in pairs.notes)


@pytest.mark.parametrize(
    "given, said",
    [
        (answers(2.0, 2.0), "all answers have the same rank"),
        (answers(1.0, None), "a number 'rank'"),
        (answers(1.0, float("nan")), "a number 'rank'"),
        ([], "answers must be a list"),
        ({"a": 1}, "answers must be a list"),
    ],
)
def test_answers_without_an_order_are_refused(given: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl, line 1: .*{said}"):
        load_pairs(written(tmp_path, {"prompt": "Which?", "answers": given}))
