"""What rows does a file hold, and on which line does each begin?

A reader opens one file and yields its rows as they stand, columns by name, without asking what they mean. What is
wrong with one row (broken JSON, broken UTF-8) travels in the row; what is wrong with the whole file is an `InputError`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

from margincast.errors import InputError

if TYPE_CHECKING:  # where it lies depends on the version of Python
    from importlib.abc import Traversable

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A list of messages written into a CSV cell, as JSON or as Python prints it.
_MESSAGES_IN_A_CELL = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")


@dataclass(frozen=True)
class Row:
    """One row as stored: `columns` by name, or the `problem` for which it could not be read. `line` counts from 1."""

    line: int
    columns: Mapping[str, object] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """One file, or one split of a Hub data set, and how to read it.

    name: as messages and records show it; label: short and unique within one DATA, the first part of a pair's id and
    the concept where no column names one; unit: what `Row.line` counts, "line" or "row"
    """

    name: str
    label: str
    unit: str
    rows: Callable[[], Iterator[Row]]


def file_source(file: Traversable, name: str, label: str) -> Source:
    """The source that reads `file` by its extension. Raises `InputError` for an extension without a reader."""
    suffix = PurePath(file.name).suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{name}: unknown extension {suffix!r}; data files are {', '.join(READERS)}")
    unit = "row" if suffix == ".parquet" else "line"
    return Source(name, label, unit, lambda: READERS[suffix](file, name))


def read_jsonl(file: Traversable, name: str) -> Iterator[Row]:
    """One JSON object a line, one row; blank lines hold no row."""
    try:
        with file.open("rb") as stream:
            for line, raw in enumerate(stream, start=1):
                text = (raw.removeprefix(_BYTE_ORDER_MARK) if line == 1 else raw).rstrip()
                if text:
                    yield _json_row(line, text)
    except OSError as error:
        raise _unreadable(name, error) from error


def _json_row(line: int, raw: bytes) -> Row:
    try:
        content = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Row(line, problem=f"not valid UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return Row(line, problem=f"not valid JSON: {error.msg} (character {error.pos + 1})")
    except (ValueError, RecursionError):  # an integer of thousands of digits, thousands of nested brackets
        return Row(line, problem="not valid JSON: a number or a nesting beyond what can be read")
    if not isinstance(content, dict):
        return Row(line, problem=f"a JSON object is needed, this is a JSON {_JSON_KINDS[type(content)]}")
    return Row(line, content)


_JSON_KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def read_csv(file: Traversable, name: str) -> Iterator[Row]:
    """Comma-separated rows under a header line. Cells are plain strings: lists of messages are refused, row by row."""
    try:
        with file.open("rb") as stream:
            # Undecodable bytes come through as lone surrogates, so that one bad row does not hide the others.
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
            # strict: a quote that never closes is an error, not one enormous last cell.
            table = csv.reader(text, strict=True)
            header = _header(next(table, []), name)
            end = table.line_num
            for cells in table:
                begin, end = end + 1, table.line_num
                if cells:
                    yield _csv_row(begin, header, cells)
    except csv.Error as error:
        raise InputError(f"{name}, line {table.line_num}: not valid CSV: {error}") from error
    except OSError as error:
        raise _unreadable(name, error) from error


def _header(cells: list[str], name: str) -> list[str]:
    if not cells:
        raise InputError(f"{name}: no rows; its first line must be a header that names the columns")
    if not {"chosen", "answer_matching_behavior"} & set(cells):
        raise InputError(
            f"{name}: the first line must be a header that names the columns, with 'chosen' and 'rejected' "
            f"or the persona columns among them; it reads {shorten(cells)}"
        )
    if len(set(cells)) < len(cells):
        raise InputError(f"{name}: the header names a column twice: {shorten(cells)}")
    return cells


def _csv_row(line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(line, problem=f"{len(cells)} cells under a header of {len(header)}")
    columns = dict(zip(header, cells, strict=True))
    for column, cell in columns.items():
        if any("\udc80" <= character <= "\udcff" for character in cell):
            return Row(line, columns, problem=f"not valid UTF-8 (column {column!r})")
        if _MESSAGES_IN_A_CELL.match(cell):
            reason = f"column {column!r} holds a list of messages; CSV can hold plain strings only, use .jsonl"
            return Row(line, columns, problem=reason)
    return Row(line, columns)


def read_parquet(file: Traversable, name: str) -> Iterator[Row]:
    """The rows of an Apache Parquet file."""
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with file.open("rb") as stream:
            row = 0
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches():
                for columns in batch.to_pylist():
                    row += 1
                    yield Row(row, columns)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{name}: cannot be read as Parquet: {first_line(error)}") from error


READERS: dict[str, Callable[[Traversable, str], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".csv": read_csv,
}


def shorten(value: object, limit: int = 80) -> str:
    """`value` as Python writes it, on one line of at most `limit` characters, for messages."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _unreadable(name: str, error: OSError) -> InputError:
    return InputError(f"{name}: cannot be read: {error.strerror or error}")
