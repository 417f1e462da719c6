"""Which prompt, chosen and rejected response does a row mean?

Three shapes are understood, the first two as TRL's `DPOTrainer` understands them:

    explicit prompt   prompt, chosen, rejected
    implicit prompt   chosen, rejected, both beginning with the prompt
    persona           question, answer_matching_behavior, answer_not_matching_behavior, and perhaps statement

A text is a string (standard) or a list of `{"role", "content"}` messages (conversational). Rows that mix the two are
corrected where there is one reading: a prompt string before responses of messages becomes a user message, response
strings after a prompt of messages become assistant messages. Every other row is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from margincast.data.readers import shorten
from margincast.records import Message, Text

_PERSONA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_UNDERSTOOD = f"'prompt' + 'chosen' + 'rejected', 'chosen' + 'rejected', or {' + '.join(map(repr, _PERSONA))}"
# Columns that change what TRL feeds to the model. Ignoring them would forecast another run than the one asked about.
_UNSUPPORTED = ("tools", "chat_template_kwargs", "image", "images")


class RowError(ValueError):
    """Why a row is no preference pair, in one line."""


@dataclass(frozen=True)
class Texts:
    """A row understood: all strings, or all non-empty tuples of messages; `statement` where a persona row has one."""

    prompt: Text
    chosen: Text
    rejected: Text
    statement: str | None = None


def read_texts(columns: Mapping[str, object]) -> Texts:
    """What the row says. Raises `RowError` when it has none of the shapes, or nothing that could be preferred."""
    if {"chosen", "rejected"} <= columns.keys():
        texts = _preference(columns)
    elif set(_PERSONA) <= columns.keys():
        texts = _persona(columns)
    else:
        found = ", ".join(shorten(name) for name in columns) or "none"
        raise RowError(f"columns missing: found {found}; understood are {_UNDERSTOOD}")
    for name, text in (("prompt", texts.prompt), ("chosen", texts.chosen), ("rejected", texts.rejected)):
        if not _says_something(text):
            raise RowError(f"{name} is empty")
    if texts.chosen == texts.rejected:
        raise RowError("chosen and rejected are the same")
    return texts


def check_string(name: str, value: object) -> str:
    """`value`, being a string that can be encoded. Raises `RowError` otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{name} must be a string, got {shorten(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{name} holds half of a surrogate pair (character {error.start + 1})") from error
    return value


def _persona(columns: Mapping[str, object]) -> Texts:
    question, matching, not_matching = (check_string(name, columns[name]) for name in _PERSONA)
    if not question:
        raise RowError("question is empty")
    statement = columns.get("statement")
    return Texts(
        prompt=question + "\n",  # as the paper's training script writes it
        chosen=matching,
        rejected=not_matching,
        statement=None if statement is None else check_string("statement", statement),
    )


def _preference(columns: Mapping[str, object]) -> Texts:
    for name in _UNSUPPORTED:
        if columns.get(name):
            raise RowError(f"column {name!r} is not supported; remove it to use the text alone")
    chosen, rejected = _text("chosen", columns["chosen"]), _text("rejected", columns["rejected"])
    prompt = _text("prompt", columns["prompt"]) if "prompt" in columns else None
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _split_strings(chosen, rejected)
        if isinstance(prompt, str):
            return Texts(prompt, chosen, rejected)
        return Texts(prompt, _message("assistant", chosen), _message("assistant", rejected))
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("one of chosen and rejected is a string, the other a list of messages")
    if prompt is None:
        return _split_messages(chosen, rejected)
    if isinstance(prompt, str):
        return _string_prompt(prompt, chosen, rejected)
    return Texts(prompt, chosen, rejected)


def _split_strings(chosen: str, rejected: str) -> Texts:
    """The implicit prompt as TRL's `extract_prompt` finds it, character by character.

    What the responses share at their beginning goes to the prompt with it, except one space before the difference.
    """
    cut = _shared_length(chosen, rejected)
    if cut == min(len(chosen), len(rejected)):
        cut -= 1  # one text begins the other: its last character is left as the response
    elif cut and chosen[cut - 1] == " ":
        cut -= 1
    if cut < 1:
        raise RowError("no 'prompt', and chosen and rejected share no beginning that could be one")
    return Texts(chosen[:cut], chosen[cut:], rejected[cut:])


def _split_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Texts:
    """The implicit prompt as TRL's `extract_prompt` finds it, message by message."""
    cut = min(_shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    if cut < 1:
        raise RowError("no 'prompt', and chosen and rejected share no opening message that could be one")
    return Texts(chosen[:cut], chosen[cut:], rejected[cut:])


def _string_prompt(prompt: str, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Texts:
    """A prompt string beside lists of messages: either the lists hold it too, or it is the user message before them."""
    if _shared_length(chosen, rejected) == 0 or chosen[0]["role"] == "assistant":
        return Texts(_message("user", prompt), chosen, rejected)
    texts = _split_messages(chosen, rejected)
    if not any(isinstance(message, Mapping) and message["content"] == prompt for message in texts.prompt):
        raise RowError("chosen and rejected open with the same messages, but 'prompt' is not one of them")
    return texts


def _says_something(text: Text) -> bool:
    return bool(text) if isinstance(text, str) else any(message["content"] for message in text)


def _message(role: str, content: str) -> tuple[Message, ...]:
    return ({"role": role, "content": content},)


def _shared_length(left: Sequence[object], right: Sequence[object]) -> int:
    pairs = zip(left, right, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _text(name: str, value: object) -> Text:
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
