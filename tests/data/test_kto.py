"""Completions that are labelled one by one become pairs where a prompt has both labels."""

from __future__ import annotations

import pytest
from tests.data.conftest import Write

from margincast.data import load_pairs
from margincast.errors import InputError


def row(prompt: object, completion: object, label: object) -> dict[str, object]:
    return {"prompt": prompt, "completion": completion, "label": label}


MIXED = [
    row("A?", "a1", True),
    row("B?", "b1", False),
    row("A?", "a2", False),
    row("A?", "a3", True),
    row("B?", "b2", True),
]


def test_good_and_bad_of_a_prompt_are_paired_in_order_and_the_rest_is_counted(write: Write) -> None:
    pairs = load_pairs(write("kto.jsonl", *MIXED, row("A?", "a4", False), row("C?", "c1", True)))
    read = [(pair.id, pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    assert read == [
        ("kto:1", "A?", "a1", "a2"),
        ("kto:4", "A?", "a3", "a4"),
        ("kto:5", "B?", "b2", "b1"),
    ]
    assert pairs.notes[0].startswith("KTO shape: 3 pairs of text (a completion labelled true is paired with")
    assert pairs.notes[1] == "kto.jsonl: 1 of 7 rows of KTO have no partner: left out"


@pytest.mark.parametrize(("good", "bad"), [(True, False), ("true", "false"), ("True", "False"), (1, 0), ("1", " 0 ")])
def test_labels_as_tables_write_them(good: object, bad: object, write: Write) -> None:
    (pair,) = load_pairs(write("kto.jsonl", row("A?", "no", bad), row("A?", "yes", good)))
    assert (pair.chosen, pair.rejected, pair.line) == ("yes", "no", 2)


def test_conversations_beside_pairs_in_one_file(write: Write) -> None:
    asked, said = ([{"role": role, "content": role}] for role in ("user", "assistant"))
    other = [{"role": "assistant", "content": "other"}]
    plain = {"prompt": "Q?", "chosen": "y", "rejected": "n"}
    pairs = load_pairs(write("kto.jsonl", row(asked, said, True), plain, row(asked, other, False)))
    assert {pair.line: pair.chosen for pair in pairs} == {1: tuple(said), 2: "y"}


def test_what_makes_no_pair_is_a_line(write: Write) -> None:
    with pytest.raises(InputError, match=r"^kto.jsonl: of 2 rows of KTO none makes a pair .* has both labels$"):
        load_pairs(write("kto.jsonl", row("A?", "a", True), row("B?", "b", False)))
    bad = write("kto.jsonl", *MIXED, row("A?", "a", "good"))
    with pytest.raises(InputError, match=r"^kto.jsonl, line 6: label must be true or false, got 'good'; correct"):
        load_pairs(bad)
    assert len(load_pairs(bad, on_bad_row="skip")) == 2


def test_a_list_of_texts_is_no_response(write: Write) -> None:
    path = write("best.jsonl", {"prompt": "Q?", "chosen": "y", "rejected": ["n", "m"]})
    with pytest.raises(InputError, match=r"line 1: rejected is a list of 2 texts, and a pair has one; write a row"):
        load_pairs(path)
