"""What does a row say once it is understood? A prompt and two responses: strings, or lists of messages.

A list of messages may be written as JSON or as Python prints it (exports through CSV or a database); a message may be
`role` and `content` or, as ShareGPT has it, `from` and `value`; a content may be a list of text parts.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from margincast.data.readers import shorten
from margincast.records import Message, Text

# How a list of messages, one message, or an object that holds them begins where it is written into a string.
_WRITTEN = re.compile(r"""\s*(\[\s*)?\{\s*['"]\w+['"]\s*:""")
_SURELY_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from)['"]\s*:""")
_WRITTEN_TWICE = re.compile(r"""\s*"\s*\[\s*\{""")
# A string, or the end of one object and the beginning of the next.
_NO_COMMA = re.compile(r"""('(?:[^'\\]|\\.)*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$))|\}\s*\{""", re.S)
# Longer strings are not parsed: no conversation is, and parsing one would take minutes and gigabytes.
_LONGEST_WRITTEN = 4_000_000
# Who speaks in ShareGPT's words.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
# Beside role and content, what chat templates use of a message; null or empty is absence.
_USED = ("name", "reasoning_content", "thinking")
_REFUSED = ("tool_calls", "function_call", "images", "image", "audio", "videos", "video")
_TEXT_PARTS = ("text", "input_text", "output_text")


class RowError(ValueError):
    """Why a row is no preference pair, in one line."""


@dataclass(frozen=True)
class Texts:
    """A row understood: all strings, or all non-empty tuples of messages; `statement` where a persona row has one.

    notes: how it was read where that is not as it stands;  shape: in people's words
    """

    prompt: Text
    chosen: Text
    rejected: Text
    statement: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    shape: str = field(default="", compare=False)


def check_string(name: str, value: object) -> str:
    """`value`, being a string that can be encoded. Raises `RowError` otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{name} must be a string, got {shorten(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{name} holds half of a surrogate pair (character {error.start + 1})") from error
    return value


def read_text(name: str, value: object, notes: list[str] | None = None) -> Text:
    """A string, or messages as a tuple of messages with string values only.

    notes: where what was done to get there is written down. Raises `RowError` for anything else.
    """
    notes = [] if notes is None else notes
    value = structured(name, value, notes)
    if isinstance(value, str):
        return check_string(name, value)
    if isinstance(value, Mapping) and is_message(value):
        value = _by_message(value)
    if not isinstance(value, (list, tuple)):
        raise RowError(f"{name} must be a string or a list of messages, got {shorten(value)}")
    if len(value) > 1 and all(isinstance(each, str) for each in value):
        raise RowError(f"{name} is a list of {len(value)} texts, and a pair has one; write a row for each")
    return tuple(_read_message(f"message {k} of {name}", message, notes) for k, message in enumerate(value, start=1))


def structured(name: str, value: object, notes: list[str]) -> object:
    """What a string that holds written messages says; every other value as it is.

    Raises `RowError` for a string that begins as a list of messages and is none. Other JSON is a text like any other.
    """
    value = _once_decoded(value)
    if not isinstance(value, str) or not _WRITTEN.match(value):
        return value
    surely = bool(_SURELY_MESSAGES.match(value))
    try:
        found = parse_written(name, value)
    except RowError:
        if surely:
            raise
        return value
    inside = found if isinstance(found, list) else [found]
    if not surely and not all(is_message(each) or (isinstance(each, dict) and "messages" in each) for each in inside):
        return value
    notes.append("messages were written as strings")
    return found


def _once_decoded(value: object) -> object:
    """Of messages that were written to JSON twice, the inner text: a JSON string that surely holds a list of them."""
    if not isinstance(value, str) or not _WRITTEN_TWICE.match(value) or len(value) > _LONGEST_WRITTEN:
        return value
    try:
        inner = json.loads(value)
    except ValueError:
        return value
    return inner if isinstance(inner, str) and _SURELY_MESSAGES.match(inner) else value


def parse_written(name: str, text: str) -> object:
    """The list or object that a string writes, as JSON or as Python prints it. Raises `RowError` for another."""
    if len(text) > _LONGEST_WRITTEN:
        raise RowError(f"{name} holds a written list of {len(text)} characters; write it as a list, not as a string")

    def made(items: list[tuple[str, object]]) -> dict[str, object]:
        _refuse_twice(name, [key for key, _ in items])
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=made)
    except RowError:
        raise
    except (ValueError, RecursionError):
        pass
    try:
        # numpy prints the messages of a pandas cell without commas between them.
        tree = ast.parse(_NO_COMMA.sub(lambda found: found[1] or "}, {", text.strip()), mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                _refuse_twice(name, [key.value for key in node.keys if isinstance(key, ast.Constant)])
        return ast.literal_eval(tree)
    except RowError:
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RowError(
            f"{name} is a string that begins like a list of messages and is none, as JSON or Python: {shorten(text)}"
        ) from error


def _refuse_twice(name: str, keys: Sequence[object]) -> None:
    if len(set(keys)) < len(keys):
        twice = next(key for k, key in enumerate(keys) if key in keys[:k])
        raise RowError(f"{name} is a string in which an object has the key {shorten(twice)} twice")


def is_message(value: object) -> bool:
    return isinstance(value, Mapping) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _by_message(value: Mapping[str, object]) -> list[object]:
    """One message as a list; or the messages of a list that a table format turned into an object of lists."""
    columns = {name: each for name, each in value.items() if isinstance(each, list)}
    if {"role", "content"} <= columns.keys() or {"from", "value"} <= columns.keys():
        return [dict(zip(columns, each, strict=False)) for each in zip(*columns.values(), strict=False)]
    return [value]


def message(role: str, content: str) -> tuple[Message, ...]:
    """One message, as a text."""
    return ({"role": role, "content": content},)


def _read_message(name: str, value: object, notes: list[str]) -> Message:
    if not isinstance(value, Mapping) or not is_message(value):
        raise RowError(f"{name} must hold 'role' and 'content', got {shorten(value)}")
    if {"role", "content"} <= value.keys():
        who, what = "role", "content"
        role: object = value["role"]
        known = SPEAKERS.get(role.lower()) if isinstance(role, str) else None
        if known and known != role:
            notes.append(f"role {role!r} is read as {known!r}")
            role = known
    else:
        who, what = "from", "value"
        speaker = str(value["from"]).lower()
        if value["from"] and speaker not in SPEAKERS:
            raise RowError(f"{name} is from {shorten(value['from'])}; known are {', '.join(SPEAKERS)}")
        role = SPEAKERS.get(speaker)
    if not role:
        raise RowError(f"{name} has no role")
    refused = next((key for key in _REFUSED if value.get(key)), None)
    if refused:
        raise RowError(f"{refused!r} in {name} is not supported; remove it to use the text alone")
    read: Message = {
        "role": check_string(f"{who!r} in {name}", role),
        "content": _content(f"{what!r} in {name}", value[what], notes),
        **{key: check_string(f"{key!r} in {name}", value[key]) for key in _USED if value.get(key)},
    }
    left_out = [key for key in value if key not in (who, what, *_USED, *_REFUSED) and value[key] is not None]
    notes.extend(f"{key!r} of messages was left out" for key in left_out)
    return read


def _content(name: str, value: object, notes: list[str]) -> str:
    if not isinstance(value, (list, tuple)):
        return check_string(name, value)
    pieces = []
    for k, part in enumerate(value, start=1):
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and kind not in _TEXT_PARTS:
            raise RowError(f"part {k} of {name} is of type {shorten(kind)}; only text can be read")
        pieces.append(check_string(f"part {k} of {name}", part.get("text") if isinstance(part, Mapping) else part))
    notes.append("contents were lists of text parts")
    return "".join(pieces)
