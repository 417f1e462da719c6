"""Rows in tables of columns: Parquet, Arrow, and the folders that `datasets` saves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.data.readers import Row, Source, first_line
from margincast.data.streams import compressed, opened
from margincast.errors import InputError

if TYPE_CHECKING:
    from importlib.abc import Traversable  # where it lies depends on the version of Python

_STATE, _INFO = "state.json", "dataset_info.json"


class Unreadable:
    """In the place of a value that Python cannot hold, such as a date after the year 9999; it matters if it is used."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"a value that cannot be read ({self.reason})"


def read_parquet(file: Traversable, name: str) -> Iterator[Row]:
    """The rows of an Apache Parquet file."""
    import pyarrow.parquet  # type: ignore[import-untyped]

    with opened(file, name) as stream:
        try:
            seekable = pyarrow.BufferReader(stream.read()) if compressed(file) else stream
            table = pyarrow.parquet.ParquetFile(seekable)
            yield from _numbered(_rows(table.iter_batches(), table.schema_arrow, name))
        except InputError:
            raise
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise InputError(f"{name}: cannot be read as Parquet: {first_line(error)}") from error


def read_arrow(file: Traversable, name: str) -> Iterator[Row]:
    """The rows of an Arrow file: of the format for files (Feather), or of streams, which `datasets` writes."""
    return _numbered(_arrow_rows(file, name))


def is_saved(folder: Path) -> bool:
    """Whether `datasets.Dataset.save_to_disk` wrote the folder."""
    return (folder / _STATE).is_file() and (folder / _INFO).is_file()


def saved_source(folder: Path, name: str, label: str) -> Source:
    """The source that reads a folder of `save_to_disk`, all its files as one table."""
    return Source(name, label, "row", lambda: _saved_rows(folder, name))


def _saved_rows(folder: Path, name: str) -> Iterator[Row]:
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        files = [Path(str(each["filename"])).name for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name}/{_STATE}: does not say which files hold the data: {first_line(error)}") from error
    missing = next((file for file in files if not (folder / file).is_file()), None)
    if missing:
        raise InputError(f"{name}/{missing}: named in {_STATE}, and not there")
    return _numbered(columns for file in files for columns in _arrow_rows(folder / file, f"{name}/{file}"))


def _arrow_rows(file: Traversable, name: str) -> Iterator[dict[str, object]]:
    import pyarrow.ipc  # type: ignore[import-untyped]

    with opened(file, name) as stream:
        try:
            if stream.peek(6)[:6] == b"ARROW1":
                seekable = pyarrow.BufferReader(stream.read()) if compressed(file) else stream
                whole = pyarrow.ipc.open_file(seekable)
                batches = (whole.get_batch(k) for k in range(whole.num_record_batches))
                yield from _rows(batches, whole.schema, name)
            else:
                parts = pyarrow.ipc.open_stream(stream)
                yield from _rows(parts, parts.schema, name)
        except InputError:
            raise
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise InputError(f"{name}: cannot be read as Arrow: {first_line(error)}") from error


def _rows(batches: Iterable[Any], schema: Any, name: str) -> Iterator[dict[str, object]]:
    names = schema.names
    twice = next((each for k, each in enumerate(names) if each in names[:k]), None)
    if twice is not None:
        raise InputError(f"{name}: column {twice!r} is there twice; remove one")
    for batch in batches:
        columns = [_values(column) for column in batch.columns]
        yield from (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _values(column: Any) -> list[object]:
    import pyarrow

    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, pyarrow.ArrowException):  # a value of it; which one, and is it used?
        return [_value(each) for each in column]


def _value(scalar: Any) -> object:
    import pyarrow

    try:
        return scalar.as_py()
    except (ValueError, OverflowError, pyarrow.ArrowException) as error:
        return Unreadable(first_line(error))


def _numbered(rows: Iterable[dict[str, object]]) -> Iterator[Row]:
    return (Row(row, columns) for row, columns in enumerate(rows, start=1))
