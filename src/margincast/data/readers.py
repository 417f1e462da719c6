"""What is a row as it is stored, and where do rows come from?

What is wrong with one row (broken JSON, broken UTF-8) travels in the row; what is wrong with the whole file is an
`InputError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One row as stored: `columns` by name, or the `problem` for which it could not be read. `line` counts from 1."""

    line: int
    columns: Mapping[str, object] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """One file, one split of a Hub data set or one table in memory, and how to read it.

    name: as messages and records show it; label: short and unique within one DATA, the first part of a pair's id;
    unit: what `Row.line` counts, "line" or "row"
    concept: of its pairs where no column names one, the label where it is empty
    split: the part that its pairs are, where the data say so
    hint: what may be wrong when no row has the columns of a pair
    notes: a line each, of what lies beside it and is not read
    """

    name: str
    label: str
    unit: str
    rows: Callable[[], Iterator[Row]]
    concept: str = ""
    split: Literal["train", "heldout"] | None = None
    hint: str = ""
    notes: tuple[str, ...] = ()


def shorten(value: object, limit: int = 80) -> str:
    """`value` as Python writes it, on one line of at most `limit` characters, for messages."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
