"""The chosen rows are those of the file, byte for byte where it has lines, in their order, with every column."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from margincast.data import load_pairs
from margincast.records import PairSet
from margincast.selection.subset import write_chosen


def some(path: Path) -> tuple[PairSet, PairSet]:
    """All pairs of the file, and every third of them."""
    pairs = load_pairs(path)
    return pairs, PairSet(pairs.pairs[::3])


ROWS = [
    {"prompt": f"Käse {k}?\nOr\u2028not", "chosen": " Yes", "rejected": " No", "extra": {"deep": [k, None]}, "n": 1.50}
    for k in range(9)
]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_lines_are_copied(tmp_path: Path, end: str) -> None:
    """Spacing, escapes, blank lines and a missing last line end: nothing is written anew."""
    lines = [json.dumps(row, ensure_ascii=bool(k % 2)).replace('"n": 1.5', '"n":1.50') for k, row in enumerate(ROWS)]
    path = tmp_path / "data.jsonl"
    text = (end or "\n").join(["", *lines]) + end
    path.write_bytes(text.encode())
    pairs, chosen = some(path)
    written, untouched = write_chosen(chosen, pairs, tmp_path / "out", "chosen", whole=False)
    kept = [(line + (end or "\n")).encode() for line in lines[::3]]
    assert untouched and written.name == "chosen.jsonl" and written.read_bytes() == b"".join(kept)
    whole, _ = write_chosen(pairs, pairs, tmp_path / "out", "whole", whole=True)
    assert whole.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name, delimiter", [("data.csv", ","), ("data.tsv", "\t")])
def test_cells_with_line_ends_stay_in_one_record(tmp_path: Path, name: str, delimiter: str) -> None:
    path = tmp_path / name
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(["prompt", "chosen", "rejected", "note"])
        table.writerows([[row["prompt"], "Yes", "No", 'a "quote"'] for row in ROWS])
    pairs, chosen = some(path)
    written, untouched = write_chosen(chosen, pairs, tmp_path / "out", "chosen", whole=False)
    with written.open(newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file, delimiter=delimiter))
    assert cells[0] == ["prompt", "chosen", "rejected", "note"]
    assert [row[0] for row in cells[1:]] == [row["prompt"] for row in ROWS[::3]]
    assert untouched and written.name == f"chosen{path.suffix}" and {row[3] for row in cells[1:]} == {'a "quote"'}


def test_arrays_and_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    array = tmp_path / "data.json"
    array.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    pairs, chosen = some(array)
    written, untouched = write_chosen(chosen, pairs, tmp_path / "out", "chosen", whole=False)
    assert untouched and json.loads(written.read_text(encoding="utf-8")) == ROWS[::3]
    table = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    pairs, chosen = some(table)
    written, untouched = write_chosen(chosen, pairs, tmp_path / "out", "chosen", whole=False)
    assert untouched and parquet.read_table(written).to_pylist() == ROWS[::3]
    assert parquet.read_table(written).schema.equals(parquet.read_table(table).schema)


def test_rows_that_are_no_pair_are_not_guessed_at(tmp_path: Path) -> None:
    """Where two rows make a pair, or a row was left out, pairs are written as margincast has them."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    pairs, chosen = some(path)
    known = PairSet(pairs.pairs[:-1])
    written, untouched = write_chosen(chosen, known, tmp_path / "out", "chosen", whole=False)
    first = json.loads(written.read_bytes().splitlines()[0])
    assert not untouched and first["prompt"] == ROWS[0]["prompt"] and "extra" not in first
