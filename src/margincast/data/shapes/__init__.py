"""Which prompt, chosen and rejected response does a row mean? One module a shape that people's files have.

A shape is recognised by the columns it needs. One of another package is an entry point of the group
`margincast.shapes`: a `Shape`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from functools import cache

from margincast.data.readers import shorten
from margincast.data.texts import RowError, Texts
from margincast.records import Text
from margincast.registry import Registry

__all__ = [
    "SHAPES",
    "RowError",
    "Shape",
    "Texts",
    "UnknownShapeError",
    "prompt_like",
    "read_texts",
    "recognise",
    "understood",
]


@dataclass(frozen=True)
class Shape:
    """columns: that a row of this shape has;  read: what they say, or a `RowError`
    rank: of two shapes that a row has, the one with the lower rank is meant
    title: whose shape it is, in people's words; its name where it is empty
    also: columns that it reads where they are there, None for whatever is there;  unless: those of another shape
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, object]], Texts]
    rank: int = 5
    title: str = ""
    also: tuple[str, ...] | None = None
    unless: tuple[str, ...] = ()

    def has(self, columns: Mapping[str, object]) -> bool:
        return set(self.columns) <= columns.keys() and not set(self.unless) & columns.keys()


SHAPES: Registry[Shape] = Registry("row shape", "margincast.data.shapes", "margincast.shapes")
"""The shapes by name. `SHAPES.register(name)` enters a `Shape`."""

# Columns whose names say that they belong to the prompt. Leaving one out would forecast another run than was meant.
_PROMPT_LIKE = (
    "prompt", "prompts", "user_prompt", "user_message", "instruction", "instructions", "question", "query", "input",
    "inputs", "context", "problem", "passage", "system", "system_prompt", "system_message", "history", "conversation",
    "conversations", "messages", "dialog", "dialogue",
)  # fmt: skip
# A text this long that stands in the prompt stands there because it was put there.
_TELLING = 20


class UnknownShapeError(RowError):
    """A row whose columns are those of no shape."""


@cache
def prompt_like(name: str) -> bool:
    """Whether a column's name says that it belongs to the prompt."""
    return re.sub(r"[\s.-]+", "_", name.strip()).lower() in _PROMPT_LIKE


def recognise(columns: Mapping[str, object]) -> tuple[str, Shape] | None:
    """The shape of a row and its name."""
    shapes = sorted(SHAPES.all().items(), key=lambda item: item[1].rank)
    return next(((name, shape) for name, shape in shapes if shape.has(columns)), None)


def read_texts(columns: Mapping[str, object], spoken_for: Container[str] = ()) -> Texts:
    """What the row says.

    spoken_for: columns that may stay unused though their names say that they belong to the prompt
    Raises `RowError` when it has none of the shapes, nothing that could be preferred, or a prompt that is not used.
    """
    found = recognise(columns)
    if found is None:
        listed = ", ".join(shorten(column) for column in columns) or "none"
        raise UnknownShapeError(f"columns missing: found {listed}")
    name, shape = found
    used = columns if shape.also is None else {*shape.columns, *shape.also, "chosen", "rejected"}
    idle = [each for each in columns if prompt_like(each) and each not in used and each not in spoken_for]
    try:
        texts = shape.read(columns)
    except RowError:
        _refuse_unused([each for each in idle if _strings(columns[each])], columns)
        raise
    _refuse_unused([each for each in idle if not _carried(columns[each], texts)], columns)
    for part, text in (("prompt", texts.prompt), ("chosen", texts.chosen), ("rejected", texts.rejected)):
        if not _says_something(text):
            raise RowError(f"{part} is empty")
    if texts.chosen == texts.rejected:
        raise RowError("chosen and rejected are the same")
    return replace(texts, shape=shape.title or name)


def understood() -> str:
    """The columns of every shape, for messages."""
    shapes = sorted(SHAPES.all().values(), key=lambda shape: shape.rank)
    listed = ", ".join(" + ".join(map(repr, each.columns)) for each in shapes)
    return f"understood are 'prompt' + 'chosen' + 'rejected', {listed}"


def _refuse_unused(names: list[str], columns: Mapping[str, object]) -> None:
    if not names:
        return
    listed = " and ".join(map(repr, names))
    looks = f"{listed} look like parts" if len(names) > 1 else f"{listed} looks like a part"
    flags = "--prompt_column {} --chosen_column chosen --rejected_column rejected"
    if "prompt" in columns:
        way = f"put it into 'prompt', or say that 'prompt' is all of it: {flags.format('prompt')}"
    else:
        way = f"say which column is the prompt: {flags.format(flag_value(names[0]))}"
    raise RowError(f"column {looks} of the prompt and would not be used; {way}")


def flag_value(name: str) -> str:
    """A column's name as a shell takes it."""
    return name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"'


def _strings(value: object) -> list[str]:
    """The texts in a value, those of a list of messages or turns included; case and spaces do not count."""
    if isinstance(value, str):
        folded = " ".join(value.split()).casefold()
        return [folded] if folded else []
    if isinstance(value, Mapping):
        value = [each for key, each in value.items() if key not in ("role", "from", "type")]
    return [text for each in value for text in _strings(each)] if isinstance(value, (list, tuple)) else []


def _carried(value: object, texts: Texts) -> bool:
    """Whether a column says nothing, or nothing that the row's texts do not say too."""
    parts = [_strings(part) for part in (texts.prompt, texts.chosen, texts.rejected)]
    said = {text for part in parts for text in part}
    whole = " ".join(" ".join(part) for part in parts)
    return all(text in said or (len(text) >= _TELLING and text in whole) for text in _strings(value))


def _says_something(text: Text) -> bool:
    return bool(text) if isinstance(text, str) else any(message["content"] for message in text)
