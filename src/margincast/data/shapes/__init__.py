"""Which prompt, chosen and rejected response does a row mean? One module a shape that people's files have.

A shape is recognised by the columns it needs. One of another package is an entry point of the group
`margincast.shapes`: a `Shape`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from margincast.data.readers import Row, shorten
from margincast.data.texts import RowError, Texts
from margincast.records import Text
from margincast.registry import Registry

__all__ = [
    "SHAPES",
    "RowError",
    "Shape",
    "Texts",
    "UnknownShapeError",
    "UnusedError",
    "likest_prompt",
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
    gather: where several rows make a pair, the rows that `read` is to read, and how many rows found no partner
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, object]], Texts]
    rank: int = 5
    title: str = ""
    also: tuple[str, ...] | None = None
    unless: tuple[str, ...] = ()
    gather: Callable[[Sequence[Row]], tuple[list[Row], int]] | None = None

    def has(self, columns: Mapping[str, object]) -> bool:
        return set(self.columns) <= columns.keys() and not set(self.unless) & columns.keys()


SHAPES: Registry[Shape] = Registry("row shape", "margincast.data.shapes", "margincast.shapes")
"""The shapes by name. `SHAPES.register(name)` enters a `Shape`."""

# Columns whose names say that they belong to the prompt, the surest first. Leaving one out would forecast another run
# than was meant.
_PROMPT_LIKE = (
    "prompt", "prompts", "user_prompt", "user_message", "instruction", "instructions", "question", "query", "problem",
    "user_input", "input", "inputs", "messages", "conversations", "conversation", "dialogue", "dialog", "dialogs",
    "turns", "trajectory", "chat_history", "context_messages", "post", "task", "user", "human", "text", "passage",
    "document", "article", "context", "history", "background", "examples", "few_shot", "preamble", "system",
    "system_prompt", "system_message", "developer",
)  # fmt: skip
# Of these a single word is a category or somebody's name: {"task": "qa", "user": "u_17"}.
_PERHAPS_NAMES = ("task", "user", "human", "text", "post", "document", "article")
_WORD = re.compile(r"[\w.:/@-]*")
# Columns that are about a pair and no part of it: where no column is the prompt, every other text could be.
_ABOUT = re.compile(
    r"(chosen|rejected).*|.*_(chosen|rejected)|(scores?|ratings?|rewards?|model|num|label|annotator|created|meta)_.*|"
    r".*(^|_)(ids?|idx|index|uuid|hash|scores?|ratings?|rewards?|ranks?|margins?|sources?|models?|generator|"
    r"category|categories|labels?|tags?|date|time|timestamp|created|language|lang|locale|split|subset|dataset|origin|"
    r"license|url|link|annotator|author|type|kind|topic|domain|concept|version|metadata|meta|file|filename|path|"
    r"tokens|length|difficulty|count)"
)
# A text this long that stands in the prompt stands there because it was put there.
_TELLING = 20


class UnknownShapeError(RowError):
    """A row whose columns are those of no shape."""


class UnusedError(RowError):
    """A row that says more than would be used.

    unused: the columns;  prompts: those that the prompt is made of, as the row stands
    """

    def __init__(self, unused: Sequence[str], prompts: Sequence[str]) -> None:
        self.unused, self.prompts = tuple(unused), tuple(prompts)
        listed = " and ".join(map(repr, unused))
        looks = f"{listed} look like parts" if len(unused) > 1 else f"{listed} looks like a part"
        super().__init__(f"column {looks} of the prompt and would not be used")


@cache
def _plain(name: str) -> str:
    return re.sub(r"[\s.-]+", "_", name.strip()).lower()


def prompt_like(name: str) -> bool:
    """Whether a column's name says that it belongs to the prompt."""
    return _plain(name) in _PROMPT_LIKE


def likest_prompt(names: Iterable[str]) -> str | None:
    """Of these columns the one that is the prompt, by its name, if any."""
    return min(filter(prompt_like, names), key=lambda name: _PROMPT_LIKE.index(_plain(name)), default=None)


def recognise(columns: Mapping[str, object]) -> tuple[str, Shape] | None:
    """The shape of a row and its name."""
    shapes = sorted(SHAPES.all().items(), key=lambda item: item[1].rank)
    return next(((name, shape) for name, shape in shapes if shape.has(columns)), None)


def read_texts(columns: Mapping[str, object], spoken_for: Container[str] = (), *, decided: bool = False) -> Texts:
    """What the row says.

    spoken_for: columns that may stay unused though their names say that they belong to the prompt
    decided: whether somebody has said which column the prompt is; others like one are then noted, not refused
    Raises `RowError` when it has none of the shapes, nothing that could be preferred, or a prompt that is not used.
    """
    found = recognise(columns)
    if found is None:
        listed = ", ".join(shorten(column) for column in columns) or "none"
        raise UnknownShapeError(f"columns missing: found {listed}")
    name, shape = found
    used = columns if shape.also is None else {*shape.columns, *shape.also, "chosen", "rejected"}
    prompts = [each for each in columns if each in used and prompt_like(each) and each != "system"]
    anything = not prompts and set(shape.columns) <= {"chosen", "rejected"}
    idle = [each for each in columns if each not in used and each not in spoken_for and _asks(each, columns, anything)]
    try:
        texts = shape.read(columns)
    except RowError as error:
        said = [each for each in idle if _strings(columns[each])]
        if said and not decided:
            raise UnusedError(said, prompts) from error
        raise
    asked = any(isinstance(each, Mapping) and each["role"] == "user" for each in texts.prompt)
    unused = [each for each in idle if not _carried(columns[each], texts) and (prompt_like(each) or not asked)]
    if unused and not decided:
        raise UnusedError(unused, prompts)
    for part, text in (("prompt", texts.prompt), ("chosen", texts.chosen), ("rejected", texts.rejected)):
        if not _says_something(text):
            raise RowError(f"{part} is empty")
    if texts.chosen == texts.rejected:
        raise RowError("chosen and rejected are the same")
    left_out = (f"column {each!r}, which looks like a part of the prompt, is not used" for each in unused)
    return replace(texts, shape=shape.title or name, notes=(*texts.notes, *left_out))


def understood() -> str:
    """The columns of every shape, for messages."""
    shapes = sorted(SHAPES.all().values(), key=lambda shape: shape.rank)
    listed = ", ".join(" + ".join(map(repr, each.columns)) for each in shapes)
    return f"understood are 'prompt' + 'chosen' + 'rejected', {listed}"


def _asks(name: str, columns: Mapping[str, object], anything: bool) -> bool:
    """Whether a column could be a part of the prompt.

    anything: whether no column is the prompt, so that a text under any name could be
    """
    value = columns[name]
    if anything and not _ABOUT.fullmatch(_plain(name)):
        return not isinstance(value, str) or not _is_number(value)
    word = isinstance(value, str) and _plain(name) in _PERHAPS_NAMES and _WORD.fullmatch(value.strip())
    return prompt_like(name) and not word


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
