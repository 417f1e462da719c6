"""Rows in text with a cell after the other: CSV, TSV. The first line names the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from margincast.data.readers import Row, shorten
from margincast.data.streams import encoding_of, opened, undecodable
from margincast.errors import InputError

if TYPE_CHECKING:
    from importlib.abc import Traversable  # where it lies depends on the version of Python

HEADER_HINT = "the first line must be a header that names the columns"
_DELIMITERS = (",", ";", "\t", "|")
# The csv module refuses longer cells, of 131,072 characters where nobody says otherwise; a conversation may be longer.
_LONGEST_CELL = 1 << 30


def read_csv(file: Traversable, name: str) -> Iterator[Row]:
    """Comma-separated rows under a header line. Cells are strings."""
    return _read(file, name, ",", "CSV")


def read_tsv(file: Traversable, name: str) -> Iterator[Row]:
    """Rows with tabs between their cells under a header line, quoted as in CSV."""
    return _read(file, name, "\t", "TSV")


def _read(file: Traversable, name: str, delimiter: str, kind: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    table = None
    try:
        with opened(file, name) as stream:
            encoding = encoding_of(stream)
            # Undecodable bytes of UTF-8 come through as lone surrogates, so that one bad row does not hide the others.
            errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
            text = io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")
            # strict: a quote that never closes is an error, not one enormous last cell.
            table = csv.reader(text, delimiter=delimiter, strict=True)
            header = _header(next(table, []), name, delimiter)
            end = table.line_num
            for cells in table:
                begin, end = end + 1, table.line_num
                if cells:
                    yield _row(begin, header, cells)
    except csv.Error as error:
        line = table.line_num if table else 1
        raise InputError(f"{name}, line {line}: not valid {kind}: {error}") from error
    except UnicodeDecodeError as error:
        raise undecodable(name, encoding) from error


def _header(cells: list[str], name: str, delimiter: str) -> list[str]:
    if not cells:
        raise InputError(f"{name}: no rows; its first line must be a header that names the columns")
    other = next((mark for mark in _DELIMITERS if mark != delimiter and mark in cells[0]), None)
    if len(cells) == 1 and other:
        kind, way = (
            (".csv", "or use tabs and call it .tsv") if delimiter == "," else (".tsv", "or use ',' and call it .csv")
        )
        raise InputError(
            f"{name}: its columns are separated by {other!r}, a {kind}'s by {delimiter!r}; write it with those, {way}"
        )
    if len(set(cells)) < len(cells):
        raise InputError(f"{name}: the header names a column twice: {shorten(cells)}")
    return cells


def _row(line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(line, problem=f"{len(cells)} cells under a header of {len(header)}")
    columns = dict(zip(header, cells, strict=True))
    for column, cell in columns.items():
        if any("\udc80" <= character <= "\udcff" for character in cell):
            return Row(line, columns, problem=f"not valid UTF-8 (column {column!r})")
    return Row(line, columns)
