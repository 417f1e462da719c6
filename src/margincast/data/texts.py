"""What does a row say once it is understood? A prompt and two responses: strings, or lists of messages."""

from __future__ import annotations

from dataclasses import dataclass

from margincast.data.readers import shorten
from margincast.records import Message, Text


class RowError(ValueError):
    """Why a row is no preference pair, in one line."""


@dataclass(frozen=True)
class Texts:
    """A row understood: all strings, or all non-empty tuples of messages; `statement` where a persona row has one."""

    prompt: Text
    chosen: Text
    rejected: Text
    statement: str | None = None


def check_string(name: str, value: object) -> str:
    """`value`, being a string that can be encoded. Raises `RowError` otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{name} must be a string, got {shorten(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{name} holds half of a surrogate pair (character {error.start + 1})") from error
    return value


def read_text(name: str, value: object) -> Text:
    """A string, or a list of messages as a tuple of messages with string values only."""
    if not isinstance(value, list):
        if isinstance(value, str):
            return check_string(name, value)
        raise RowError(f"{name} must be a string or a list of messages, got {shorten(value)}")
    return tuple(_read_message(f"message {k} of {name}", message) for k, message in enumerate(value, start=1))


def _read_message(name: str, value: object) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise RowError(f"{name} must hold 'role' and 'content', got {shorten(value)}")
    if not value["role"]:
        raise RowError(f"{name} has no role")
    # Table formats fill the keys that only some messages have with null; null is absence.
    present = {key: item for key, item in value.items() if item is not None or key in ("role", "content")}
    return {key: check_string(f"{key!r} in {name}", item) for key, item in present.items()}
