"""Which prompt, chosen and rejected response does a row mean? One module a shape that people's files have.

A shape is recognised by the columns it needs. One of another package is an entry point of the group
`margincast.shapes`: a `Shape`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from margincast.data.readers import shorten
from margincast.data.texts import RowError, Texts
from margincast.records import Text
from margincast.registry import Registry

__all__ = ["SHAPES", "RowError", "Shape", "Texts", "read_texts"]


@dataclass(frozen=True)
class Shape:
    """columns: that a row of this shape has;  read: what they say, or a `RowError`
    rank: of two shapes that a row has, the one with the lower rank is meant
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, object]], Texts]
    rank: int = 5


SHAPES: Registry[Shape] = Registry("row shape", "margincast.data.shapes", "margincast.shapes")
"""The shapes by name. `SHAPES.register(name)` enters a `Shape`."""


def read_texts(columns: Mapping[str, object]) -> Texts:
    """What the row says. Raises `RowError` when it has none of the shapes, or nothing that could be preferred."""
    shapes = sorted(SHAPES.all().values(), key=lambda shape: shape.rank)
    shape = next((each for each in shapes if set(each.columns) <= columns.keys()), None)
    if shape is None:
        found = ", ".join(shorten(name) for name in columns) or "none"
        understood = ", or ".join(" + ".join(map(repr, each.columns)) for each in shapes)
        raise RowError(f"columns missing: found {found}; understood are 'prompt' + 'chosen' + 'rejected', {understood}")
    texts = shape.read(columns)
    for name, text in (("prompt", texts.prompt), ("chosen", texts.chosen), ("rejected", texts.rejected)):
        if not _says_something(text):
            raise RowError(f"{name} is empty")
    if texts.chosen == texts.rejected:
        raise RowError("chosen and rejected are the same")
    return texts


def _says_something(text: Text) -> bool:
    return bool(text) if isinstance(text, str) else any(message["content"] for message in text)
