"""Whatever is wrong with the input is said in one line, with file, line and reason, and nothing is dropped silently."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from margincast.data import load_pairs
from margincast.errors import InputError

ROW = {"prompt": "Is it raining?", "chosen": " No", "rejected": " Yes"}
PERSONA = {"question": "Q?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
UNDERSTOOD = (
    "understood are 'prompt' + 'chosen' + 'rejected', 'question' + 'answer_matching_behavior' + "
    "'answer_not_matching_behavior', 'input' + 'preferred_output' + 'non_preferred_output', "
    "'conversations' + 'chosen' + 'rejected', "
    "'messages' + 'chosen' + 'rejected', 'messages' + 'rejected_response', 'instruction' + 'chosen' + "
    "'rejected', 'prompt' + 'completion' + 'label', 'prompt' + 'answers', 'question' + 'chosen' + 'rejected', "
    "'chosen' + 'rejected'; "
    "name yours with --prompt_column, --chosen_column and --rejected_column"
)
FILES = ".jsonl, .json, .parquet, .arrow, .csv, .tsv, each also .gz, .zst, .xz, .bz2"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "not valid JSON: Expecting property name enclosed in double quotes (character 2)"),
        (b'{"prompt": "a"} {}', "not valid JSON: Extra data (character 17)"),
        (b"[" * 100_000, "not valid JSON: a number or a nesting beyond what can be read"),
        (b'{"prompt": ' + b"9" * 5_000 + b"}", "not valid JSON: a number or a nesting beyond what can be read"),
        (b'{"prompt": "caf\xe9"}', "not valid UTF-8 (byte 16 of the line)"),
        (["a", "b"], "a JSON object is needed, this is a JSON array"),
        (None, "a JSON object is needed, this is a JSON null"),
        ({}, f"columns missing: found none; {UNDERSTOOD}"),
        ({"prompt": "a", "chosen": "b"}, f"columns missing: found 'prompt', 'chosen'; {UNDERSTOOD}"),
        (ROW | {"prompt": ""}, "prompt is empty"),
        (ROW | {"chosen": ""}, "chosen is empty"),
        (ROW | {"rejected": ""}, "rejected is empty"),
        (ROW | {"rejected": ROW["chosen"]}, "chosen and rejected are the same"),
        (ROW | {"prompt": None}, "prompt must be a string or a list of messages, got None"),
        (ROW | {"chosen": 1.5}, "chosen must be a string or a list of messages, got 1.5"),
        (ROW | {"rejected": {"a": 1}}, "rejected must be a string or a list of messages, got {'a': 1}"),
        (ROW | {"prompt": "\ud800"}, "prompt holds half of a surrogate pair (character 1)"),
        (PERSONA | {"question": ""}, "question is empty"),
        (PERSONA | {"question": 7}, "question must be a string, got 7"),
        (PERSONA | {"answer_matching_behavior": ""}, "chosen is empty"),
        (PERSONA | {"statement": ["s"]}, "statement must be a string, got ['s']"),
    ],
)
def test_bad_jsonl_row(write, bad, reason):
    write("rows.jsonl", ROW, bad)
    with pytest.raises(InputError) as error:
        load_pairs("rows.jsonl")
    advice = "; correct the data or leave bad rows out with --on-bad-row skip"
    assert str(error.value) == f"rows.jsonl, line 2: {reason}{advice}"

    skipping = load_pairs("rows.jsonl", on_bad_row="skip")
    assert len(skipping) == 1
    assert skipping.skipped == (f"rows.jsonl, line 2: {reason}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"chosen,rejected,prompt\n a,,Q", "rows.csv, line 2: rejected is empty"),
        (b"prompt,chosen,rejected\nQ,a", "rows.csv, line 2: 2 cells under a header of 3"),
        (b"prompt,chosen,rejected\nQ,caf\xe9,b", "rows.csv, line 2: not valid UTF-8 (column 'chosen')"),
        (
            b"""prompt,chosen,rejected\nQ,"[{'role': 'user', 'content': 'a'}]",b""",
            "rows.csv, line 2: one of chosen and rejected is a string, the other a list of messages",
        ),
        (b'prompt,chosen,rejected\n"Q\nQ",a,b\n\nQ,a,a', "rows.csv, line 5: chosen and rejected are the same"),
    ],
)
def test_bad_csv_row(write, content, message):
    write("rows.csv", content)
    with pytest.raises(InputError) as error:
        load_pairs("rows.csv")
    assert str(error.value).startswith(message + "; ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"", "rows.csv: no rows; its first line must be a header that names the columns"),
        ("rows.csv", b"prompt,chosen,rejected", "rows.csv: no rows"),
        (
            "rows.csv",
            b"What?,yes,no\nWhy?,so,not",
            "rows.csv: the first line must be a header that names the columns, with 'chosen' and 'rejected' "
            "or the persona columns among them; it reads ['What?', 'yes', 'no']",
        ),
        (
            "rows.csv",
            b"chosen,rejected,chosen\na,b,c",
            "rows.csv: the header names a column twice: ['chosen', 'rejected', 'chosen']",
        ),
        ("rows.csv", b'chosen,rejected\n"a,b\nc,d', "rows.csv, line 3: not valid CSV: unexpected end of data"),
        ("rows.jsonl", b"\n  \n", "rows.jsonl: no rows"),
        ("rows.json", b"[]", "rows.json: no rows"),
        ("rows.txt", b"", f"rows.txt: unknown extension '.txt'; data files are {FILES}"),
        ("rows", b"", f"rows: unknown extension ''; data files are {FILES}"),
    ],
)
def test_bad_file(write, name, content, message):
    write(name, content)
    for on_bad_row in ("fail", "skip"):
        with pytest.raises(InputError) as error:
            load_pairs(name, on_bad_row=on_bad_row)
        assert str(error.value).strip() == message


def test_broken_parquet(write):
    write("rows.parquet", b"PAR1 and then nothing of the kind")
    with pytest.raises(InputError, match=r"^rows\.parquet: cannot be read as Parquet: [^\n]+$"):
        load_pairs("rows.parquet")


def test_bad_parquet_row_is_counted_in_rows(write):
    path = write("rows.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW, ROW | {"chosen": None}]), path)
    with pytest.raises(
        InputError, match=r"^rows\.parquet, row 2: chosen must be a string or a list of messages, got N"
    ):
        load_pairs("rows.parquet")


def test_an_unreadable_file_is_an_input_error(write, monkeypatch):
    for name in ("rows.jsonl", "rows.csv"):
        path = write(name, ROW)

        def refuse(*args):
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            with pytest.raises(InputError) as error:
                load_pairs(name)
        assert str(error.value) == f"{path}: cannot be read: Permission denied"


def test_first_bad_row_is_named_and_the_others_counted(write):
    write("d/a.jsonl", ROW, b"{", ROW)
    write("d/b.jsonl", ROW | {"chosen": ""}, [1])
    with pytest.raises(InputError) as error:
        load_pairs("d")
    assert str(error.value) == (
        "d/a.jsonl, line 2: not valid JSON: Expecting property name enclosed in double quotes (character 2) "
        "(and 2 more bad rows); correct the data or leave bad rows out with --on-bad-row skip"
    )
    skipping = load_pairs("d", on_bad_row="skip")
    assert [pair.id for pair in skipping] == ["a:1", "a:3"]
    assert [reason.split(":")[0] for reason in skipping.skipped] == [
        "d/a.jsonl, line 2",
        "d/b.jsonl, line 1",
        "d/b.jsonl, line 2",
    ]


def test_skipping_every_row_is_an_error(write):
    write("rows.jsonl", [1], [2])
    with pytest.raises(InputError) as error:
        load_pairs("rows.jsonl", on_bad_row="skip")
    assert str(error.value) == (
        "rows.jsonl, line 1: a JSON object is needed, this is a JSON array (and 1 more bad row); no usable row is left"
    )


@pytest.mark.parametrize("value", ["", "  ", None, 1.0, True, ["a"]])
def test_concept_must_be_a_string_or_an_integer(write, value):
    write("rows.jsonl", ROW | {"topic": "a"}, ROW | {"topic": value})
    with pytest.raises(InputError) as error:
        load_pairs("rows.jsonl", concept_column="topic")
    assert str(error.value).startswith(
        f"rows.jsonl, line 2: concept column 'topic' must hold a string or an integer, got {value!r}; "
    )


def test_concept_column_missing_from_one_row_or_from_all(write):
    write("rows.jsonl", ROW | {"topic": "a"}, ROW)
    with pytest.raises(InputError, match=r"^rows\.jsonl, line 2: concept column 'topic' is missing; "):
        load_pairs("rows.jsonl", concept_column="topic")
    with pytest.raises(InputError) as error:
        load_pairs("rows.jsonl", concept_column="tpoic")
    assert str(error.value) == (
        "rows.jsonl: no row has the concept column 'tpoic'; columns found: 'prompt', 'chosen', 'rejected', 'topic'"
    )


def test_rows_that_cannot_be_read_are_not_blamed_on_the_concept_column(write):
    write("rows.jsonl", [1])
    with pytest.raises(InputError, match=r"^rows\.jsonl, line 1: a JSON object is needed"):
        load_pairs("rows.jsonl", concept_column="topic")


def test_messages_stay_on_one_line_and_short(write):
    write("rows.jsonl", ROW | {"chosen": ["a\nb" * 1000]})
    with pytest.raises(InputError) as error:
        load_pairs("rows.jsonl")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_on_bad_row_has_two_values(write):
    write("rows.jsonl", ROW)
    with pytest.raises(InputError, match="on_bad_row must be 'fail' or 'skip', got 'ignore'"):
        load_pairs("rows.jsonl", on_bad_row="ignore")
