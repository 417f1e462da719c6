"""TRL's shapes: prompt, chosen, rejected; or chosen and rejected that both begin with the prompt.

A text is a string (standard) or a list of `{"role", "content"}` messages (conversational). Rows that mix the two are
corrected where there is one reading: a prompt string before responses of messages becomes a user message, response
strings after a prompt of messages become assistant messages. Every other row is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, read_text
from margincast.records import Message

# Columns that change what TRL feeds to the model. Ignoring them would forecast another run than the one asked about.
_UNSUPPORTED = ("tools", "chat_template_kwargs", "image", "images")


def _preference(columns: Mapping[str, object]) -> Texts:
    for name in _UNSUPPORTED:
        if columns.get(name):
            raise RowError(f"column {name!r} is not supported; remove it to use the text alone")
    chosen, rejected = read_text("chosen", columns["chosen"]), read_text("rejected", columns["rejected"])
    prompt = read_text("prompt", columns["prompt"]) if "prompt" in columns else None
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


def _message(role: str, content: str) -> tuple[Message, ...]:
    return ({"role": role, "content": content},)


def _shared_length(left: Sequence[object], right: Sequence[object]) -> int:
    pairs = zip(left, right, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


SHAPES.register("preference")(Shape(("chosen", "rejected"), _preference, rank=0))
