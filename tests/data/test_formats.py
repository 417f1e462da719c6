"""The same rows come out of every format, compression and encoding, and what is wrong with a file is said."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from margincast.data import load_pairs
from margincast.errors import InputError

ROWS = [
    {"prompt": "Is it raining?", "chosen": " No, café", "rejected": " Yes"},
    {"prompt": "Is it\nsnowing?", "chosen": " Yes", "rejected": " No"},
]
EXPECTED = [tuple(row.values()) for row in ROWS]


def _delimited(mark: str) -> str:
    quoted = [mark.join('"' + cell.replace('"', '""') + '"' for cell in row.values()) for row in ROWS]
    return "\n".join([mark.join(ROWS[0]), *quoted]) + "\n"


def _zst(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def _table(name: str) -> bytes:
    table, sink = pyarrow.Table.from_pylist(ROWS), pyarrow.BufferOutputStream()
    if name == "parquet":
        pyarrow.parquet.write_table(table, sink)
    elif name == "feather":
        pyarrow.feather.write_feather(table, sink, compression="uncompressed")
    else:
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PANDAS = {name: {str(k): row[name] for k, row in enumerate(ROWS)} for name in ROWS[0]}
TEXTS = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "array.json": json.dumps(ROWS, indent=2),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "pandas.json": json.dumps(PANDAS),
    "split.json": json.dumps({"columns": list(ROWS[0]), "index": [0, 1], "data": [list(row.values()) for row in ROWS]}),
    "inside.json": json.dumps({"version": "1.0", "data": ROWS}),
    "cells.csv": _delimited(","),
    "cells.tsv": _delimited("\t"),
}
TABLES = {"table.parquet": _table("parquet"), "file.arrow": _table("feather"), "stream.arrow": _table("stream")}
FILES = {name: text.encode() for name, text in TEXTS.items()} | TABLES
COMPRESSED = {"": bytes, ".gz": gzip.compress, ".zst": _zst, ".xz": lzma.compress, ".bz2": bz2.compress}


def texts(data: object) -> list[tuple[object, ...]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in load_pairs(data)]  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path, name, compression):
    path = tmp_path / (name + compression)
    path.write_bytes(COMPRESSED[compression](FILES[name]))
    assert texts(path) == EXPECTED
    pairs = load_pairs(path)
    assert pairs.concepts == (name.partition(".")[0],)
    assert pairs.notes == ("TRL shape: 2 pairs of text",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["lines.jsonl", "array.json", "cells.csv", "cells.tsv"])
def test_encodings_are_told_by_their_first_bytes(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_bytes(TEXTS[name].encode(encoding))
    assert texts(path) == EXPECTED


@pytest.mark.parametrize("name", ["lines.jsonl", "array.json", "cells.csv"])
def test_broken_utf_16_is_said(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(TEXTS[name].encode("utf-16") + b"\x00\xd8\x00")
    with pytest.raises(InputError, match=r"not valid UTF-16.*; save it as UTF-8$"):
        load_pairs(path)


def test_a_cell_may_be_long(tmp_path):
    (tmp_path / "long.csv").write_text("prompt,chosen,rejected\nQ," + "a" * 200_000 + ",b\n")
    assert len(load_pairs(tmp_path / "long.csv")[0].chosen) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"", "a.json: no rows"),
        ("a.json", b'"text"', "a.json: an array of JSON objects is needed, this is a JSON string"),
        ("a.json", b"[1]", "a.json, row 1: a JSON object is needed, this is a JSON number; no usable row is left"),
        ("a.json", b'[{"prompt": "a"\n,}]', "a.json, line 2: not valid JSON: "),
        ("a.json", b"[" * 100_000, "a.json: not valid JSON: a number or a nesting beyond what can be read"),
        ("a.json", b"caf\xe9", "a.json: not valid UTF-8 (byte 4); save it as UTF-8"),
        ("a.json", b'{"a": ["x"], "b": ["y", "z"]}', "a.json: an object of columns of different lengths (1, 2)"),
        ("a.json", b'{"x": [{"a": 1}], "y": [{"a": 2}]}', "a.json: several lists of rows ('x', 'y'); give each a file"),
        ("a.json", b'{"prompt": "Q", "chosen": "a", "chosen": "b", "rejected": "c"}', "a.json, row 1: key 'chosen' is"),
        (
            "a.jsonl",
            b'{"prompt": "Q", "chosen": "a", "rejected": "c", "chosen": "b"}',
            "a.jsonl, line 1: key 'chosen' is",
        ),
        (
            "a.jsonl",
            b'{"prompt": [{"role": "user", "content": 1, "content": 2}]}',
            "a.jsonl, line 1: key 'content'",
        ),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: cannot be read: "),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "a.jsonl.gz: cannot be decompressed: "),
        ("a.jsonl.zst", b"no zstd", "a.jsonl.zst: cannot be read: "),
        ("a.jsonl.xz", b"no xz at all", "a.jsonl.xz: cannot be decompressed: "),
        ("a.jsonl.bz2", b"no bz2 at all", "a.jsonl.bz2: cannot be read: "),
        ("a.arrow", b"nothing", "a.arrow: cannot be read as Arrow: "),
        ("a.parquet.gz", gzip.compress(b"nothing", mtime=0), "a.parquet.gz: cannot be read as Parquet: "),
        ("a.tsv", b"", "a.tsv: no rows; its first line must be a header"),
        ("a.tsv", b'prompt\tchosen\n"Q\ta', "a.tsv, line 2: not valid TSV: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, monkeypatch, name, content, reason):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load_pairs(name)
    assert str(error.value).startswith(reason)
    assert "\n" not in str(error.value)


def test_a_repeated_key_or_a_broken_line_spoils_its_row_alone(tmp_path):
    path = tmp_path / "a.json"
    twice = '{"prompt": "Q", "chosen": "a", "chosen": "b", "rejected": "c"}'
    path.write_text(f"[{twice}, {json.dumps(ROWS[0])}]")
    pairs = load_pairs(path, on_bad_row="skip")
    assert [pair.line for pair in pairs] == [2]
    assert pairs.skipped[0].endswith("a.json, row 1: key 'chosen' is given twice in one object")
    path.write_text(json.dumps(ROWS[0]) + "\n\n{\n" + json.dumps(ROWS[1]))
    pairs = load_pairs(path, on_bad_row="skip")
    assert [pair.line for pair in pairs] == [1, 3]


def test_one_object_is_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[0]))
    assert texts(path) == EXPECTED[:1]
    asked = {"role": "user", "content": "Q"}
    messages = {side: [asked, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    path.write_text(json.dumps(messages))
    assert [pair.chosen for pair in load_pairs(path)] == [({"role": "assistant", "content": "chosen"},)]


def _parquet(path: Path, **columns: pyarrow.Array) -> Path:
    arrays = {name: pyarrow.array([row[name] for row in ROWS]) for name in ROWS[0]} | columns
    pyarrow.parquet.write_table(pyarrow.table(list(arrays.values()), names=list(arrays)), path)
    return path


def test_values_that_python_cannot_hold_matter_where_they_are_used(tmp_path):
    day = pyarrow.array([2**55, 0], pyarrow.int64()).view(pyarrow.date64())
    span = pyarrow.array([2**62, 0], pyarrow.duration("s"))
    path = _parquet(
        tmp_path / "a.parquet", day=day, span=span, both=pyarrow.StructArray.from_arrays([day, span], ["a", "b"])
    )
    assert texts(path) == EXPECTED
    _parquet(path, chosen=day)
    with pytest.raises(
        InputError, match=r"row 1: chosen must be a string or a list of messages, got a value that cannot"
    ):
        load_pairs(path)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    names = ["prompt", "prompt", "chosen", "rejected"]
    table = pyarrow.table([pyarrow.array([text]) for text in ("Q", "R", "a", "b")], names=names)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow")
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(InputError, match=rf"{name}: column 'prompt' is there twice"):
            load_pairs(tmp_path / name)


def test_what_is_no_regular_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jsonl")
    Path("gone.jsonl").symlink_to("nowhere")
    Path("d").mkdir()
    os.mkfifo("d/pipe.jsonl")
    for name, reason in (
        ("pipe.jsonl", "pipe.jsonl: no regular file"),
        ("gone.jsonl", "gone.jsonl: a link to nothing"),
        ("d", "d/pipe.jsonl: no regular file"),
    ):
        with pytest.raises(InputError) as error:
            load_pairs(name)
        assert str(error.value).startswith(reason)


def test_a_name_that_is_no_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"\xff\xfe.jsonl")
    try:
        Path(name).write_text(LINES)
    except OSError:
        pytest.skip("this file system has no such names")
    for data in (name, "."):
        with pytest.raises(InputError, match=r"\\udcff\\udcfe\.jsonl: the file's name is not UTF-8; rename it"):
            load_pairs(data)
