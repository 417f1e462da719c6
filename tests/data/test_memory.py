"""Tables in memory give the pairs that their files would give."""

import subprocess
import sys

import numpy
import pandas
import pytest
from datasets import Dataset, DatasetDict

from margincast.data import load_pairs
from margincast.errors import InputError

ROWS = [
    {"prompt": "Is it raining?", "chosen": " No", "rejected": " Yes", "topic": 1},
    {"prompt": "Is it snowing?", "chosen": " Yes", "rejected": " No", "topic": 2},
]
USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "Y"), ("assistant", "N"))
)
CHAT = [{"chosen": [USER, YES], "rejected": [USER, NO]}]
TABLES = {
    "list": list,
    "tuple": tuple,
    "Dataset": Dataset.from_list,
    "DataFrame": pandas.DataFrame,
    "iterable": lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
    "formatted": lambda rows: Dataset.from_list(rows).with_format("numpy"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_read_row_by_row(kind):
    pairs = load_pairs(TABLES[kind](ROWS), concept_column="topic")
    assert [(pair.id, pair.concept, pair.source, pair.line) for pair in pairs] == [
        ("memory:1", "1", "memory", 1),
        ("memory:2", "2", "memory", 2),
    ]
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [tuple(row.values())[:3] for row in ROWS]
    (pair,) = load_pairs(TABLES[kind](CHAT))
    assert (pair.prompt, pair.chosen, pair.rejected) == ((USER,), (YES,), (NO,))


def test_a_frame_of_a_parquet_file_with_messages_and_gaps(tmp_path):
    frame = pandas.DataFrame([CHAT[0] | {"system": "Be brief."}, CHAT[0] | {"system": None}])
    frame.to_parquet(tmp_path / "rows.parquet")
    pairs = load_pairs(pandas.read_parquet(tmp_path / "rows.parquet"))
    assert [len(pair.prompt) for pair in pairs] == [2, 1]
    assert load_pairs(tmp_path / "rows.parquet")[0].prompt == pairs[0].prompt


def test_a_named_index_is_a_column():
    frame = pandas.DataFrame(ROWS)
    for indexed in (frame.set_index("prompt"), frame.set_index(["topic", "prompt"])):
        assert [pair.prompt for pair in load_pairs(indexed)] == [row["prompt"] for row in ROWS]


def test_what_numpy_holds_in_records_is_plain():
    row = {side: numpy.array(messages, dtype=object) for side, messages in CHAT[0].items()} | {"topic": numpy.str_("a")}
    (pair,) = load_pairs([row], concept_column="topic")
    assert (pair.prompt, pair.chosen, pair.rejected) == ((USER,), (YES,), (NO,))
    (pair,) = load_pairs({numpy.str_("sea"): [{k: numpy.str_(v) for k, v in ROWS[0].items()}]})
    assert {type(each) for each in (pair.id, pair.concept, pair.prompt, pair.chosen, pair.source)} == {str}


@pytest.mark.parametrize("kind", [dict, DatasetDict])
def test_splits_in_memory(kind):
    both = kind(train=Dataset.from_list(ROWS), test=Dataset.from_list([ROWS[0] | {"prompt": "Is it hot?"}]))
    pairs = load_pairs(both)
    assert pairs.concepts == ("memory",)
    train, heldout = pairs.split()
    assert ([pair.id for pair in train], [pair.id for pair in heldout]) == (["train:1", "train:2"], ["test:1"])
    again = load_pairs(both["train"], heldout=both["test"])
    assert [pair.id for pair in again.split()[1]] == ["heldout/memory:1"]
    assert again.concepts == ("memory",)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([], "memory: no rows"),
        ({}, "memory: no rows"),
        ([ROWS[0], "text"], "memory, row 2: a dict is needed, this is a str"),
        ([ROWS[0], {"prompt": "Q"}], "memory, row 2: columns missing: found 'prompt'"),
        (
            pandas.DataFrame([ROWS[0], {"prompt": "Q"}]),
            "memory, row 2: chosen must be a string or a list of messages, got",
        ),
        (pandas.DataFrame([["a", "b"]], columns=["chosen", "chosen"]), "memory: column 'chosen' is there twice"),
        (
            7,
            "memory: an object of type int is no data; give a path, a Dataset or DatasetDict of",
        ),
        ({"prompt": ["Q"], "chosen": "a"}, "memory:chosen: an object of type str is no data"),
    ],
)
def test_what_is_no_table_or_row_is_said(table, reason):
    with pytest.raises(InputError) as error:
        load_pairs(table)
    assert str(error.value).startswith(reason)


def test_labelled_rows_in_memory_are_converted_in_memory():
    row = {"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 1}
    with pytest.raises(InputError, match=r"d = datasets.Dataset.from_list\(DATA\)"):
        load_pairs([row])


def test_a_list_needs_neither_datasets_nor_pandas():
    code = (
        "import sys, margincast as mc; mc.load_pairs([{'prompt': 'Q', 'chosen': 'a', 'rejected': 'b'}]); "
        "print([name for name in ('datasets', 'pandas', 'torch', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
