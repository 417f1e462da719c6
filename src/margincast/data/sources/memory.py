"""Tables in memory: a Dataset or DatasetDict of `datasets`, a DataFrame of pandas, a list of dicts.

Neither library is imported here: who has such an object has imported it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from margincast.data.readers import Row, Source
from margincast.data.sources import SOURCES, SourceKind, Where
from margincast.data.splits import note_of_drawn, parts_of
from margincast.errors import InputError

_NAME = "memory"


def _tables(data: object, where: Where) -> list[Source]:
    if not isinstance(data, Mapping):
        return [Source(_NAME, _NAME, "row", lambda: _rows(data, _NAME))]
    if not data:
        raise InputError(f"{_NAME}: no rows")
    parts = parts_of([str(name) for name in data], _NAME, where.test_split)
    sources, left_out = [], []
    for name, table in data.items():
        part, label = parts[str(name)], str(name)
        if part.left_out:
            left_out.append(f"{label} ({part.left_out})")
            continue
        source = _table(f"{_NAME}:{label}", label, table)
        sources.append(replace(source, concept=part.concept, split=part.split))
    notes = (f"not read: {', '.join(left_out)}",) if left_out else ()
    return [replace(sources[0], notes=(*notes, *note_of_drawn(parts))), *sources[1:]]


def _table(name: str, label: str, table: object) -> Source:
    return Source(name, label, "row", lambda: _rows(table, name))


def _rows(table: object, name: str) -> Iterator[Row]:
    """Its rows, from 1. Raises `InputError` for an object that is no table."""
    for row, columns in enumerate(_records(table, name), start=1):
        if isinstance(columns, Mapping):
            yield Row(row, {str(key): value for key, value in columns.items()})
        else:
            yield Row(row, problem=f"a dict is needed, this is a {type(columns).__name__}")


def _records(table: Any, name: str) -> Iterable[object]:
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if pandas and isinstance(table, pandas.DataFrame):
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()][0]
            raise InputError(f"{name}: column {twice!r} is there twice; remove one")
        named = [name for name in table.index.names if name is not None and name not in table.columns]
        table = (table.reset_index(level=named) if named else table).to_dict(
            "records"
        )  # an index that is named is data
    if datasets and isinstance(table, (datasets.Dataset, datasets.IterableDataset)):
        return table.with_format(None)  # type: ignore[no-any-return]
    if isinstance(table, Sequence) and not isinstance(table, (str, bytes)):
        return (
            {key: _plain(value) for key, value in row.items()} if isinstance(row, Mapping) else row for row in table
        )
    raise InputError(
        f"{name}: an object of type {type(table).__name__} is no data; give a path, a Dataset or DatasetDict of "
        "datasets, a DataFrame, or a list of dicts"
    )


def _plain(value: Any) -> object:
    """A value of pandas or numpy as Python has it: arrays are lists, and what is missing is None."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    missing = (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")
    return None if missing else value


SOURCES.register(_NAME)(SourceKind(lambda data: not isinstance(data, (str, Path)), _tables, rank=-1))
