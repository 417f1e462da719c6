"""How do a prompt, two responses and perhaps a system text become one row of texts? TRL's rules, and what is mended.

A text is a string (standard) or messages (conversational). Rows that mix the two are corrected where there is one
reading: a prompt string before responses of messages becomes a user message, response strings after a prompt of
messages become assistant messages, a system text beside strings makes messages of all three. Responses of messages
that repeat the prompt are cut after it. Every other row is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from margincast.data.readers import shorten
from margincast.data.texts import RowError, Texts, check_string, message, read_text
from margincast.records import Message, Text

# Columns that change what TRL feeds to the model. Ignoring them would forecast another run than the one asked about.
UNSUPPORTED = ("tools", "chat_template_kwargs", "image", "images", "video", "videos", "audio", "audios")


def refuse_unsupported(columns: Mapping[str, object]) -> None:
    for name in UNSUPPORTED:
        if columns.get(name) and columns[name] != "[]":
            raise RowError(f"column {name!r} is not supported; remove it to use the text alone")


def read_row(columns: Mapping[str, object], prompt: Text | None, notes: list[str], *, chat: bool = False) -> Texts:
    """The texts of a row with `chosen` and `rejected`, before which the prompt and a `system` text, if any, are put.

    prompt: None where the responses hold it;  chat: whether strings are what user and assistant say
    """
    refuse_unsupported(columns)
    chosen, rejected = (read_text(name, columns[name], notes) for name in ("chosen", "rejected"))
    system = read_system(columns)
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    if (system is not None or chat) and prompt is not None:
        prompt = message("user", prompt) if isinstance(prompt, str) and prompt else prompt
    texts = join(prompt, chosen, rejected, notes)
    if prompt is None:
        notes.append("prompt: the opening that both responses share")
    return Texts(
        _with_system(texts.prompt, system, notes), texts.chosen, texts.rejected, notes=tuple(dict.fromkeys(notes))
    )


def conversation(columns: Mapping[str, object], name: str, notes: list[str]) -> tuple[Message, ...]:
    """The messages in column `name`, to which the responses are the answer.

    Raises `RowError` for a text, and for messages that end with the assistant's (where that is not the chosen one).
    """
    said = read_text(name, columns[name], notes)
    if isinstance(said, str):
        raise RowError(f"{name} must be a list of messages; a text is a 'prompt'")
    if not said or said[-1]["role"] != "assistant":
        return said
    chosen = read_text("chosen", columns["chosen"])
    if said[-1]["content"] != (chosen if isinstance(chosen, str) else chosen[-1]["content"] if chosen else None):
        raise RowError(f"{name} ends with a message of the assistant, which the responses cannot answer")
    notes.append(f"the chosen response, with which {name!r} ends, was cut from there")
    return said[:-1]


def read_system(columns: Mapping[str, object]) -> str | None:
    """The column `system`, None where it is missing or null."""
    system = columns.get("system")
    return None if system is None else check_string("system", system)


def _with_system(prompt: Text, system: str | None, notes: list[str]) -> Text:
    if not system or not system.strip() or not prompt:  # a prompt that is empty is refused as that
        return prompt
    if isinstance(prompt, str):
        raise RowError("a 'system' column beside responses of text that hold their prompt; give the prompt a column")
    if prompt[0]["role"] == "system":
        if prompt[0]["content"] != system:
            raise RowError(f"column 'system' says {shorten(system)}, and the prompt's own system message does not")
        return prompt
    notes.append("'system' is a system message")
    return (*message("system", system), *prompt)


def join(prompt: Text | None, chosen: Text, rejected: Text, notes: list[str]) -> Texts:
    """The texts of one row, mended where they mix strings and messages. Raises `RowError` for others."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _split_strings(chosen, rejected)
        if isinstance(prompt, str):
            if prompt and chosen.startswith(prompt) and rejected.startswith(prompt):
                notes.append("both responses begin with the text of the prompt again, and are read as they are")
            return Texts(prompt, chosen, rejected)
        return Texts(prompt, message("assistant", chosen), message("assistant", rejected))
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("one of chosen and rejected is a string, the other a list of messages")
    if prompt is None:
        return _split_messages(chosen, rejected)
    if isinstance(prompt, str):
        return _string_prompt(prompt, chosen, rejected, notes)
    return _without_prompt(prompt, chosen, rejected, notes)


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


def _string_prompt(prompt: str, chosen: tuple[Message, ...], rejected: tuple[Message, ...], notes: list[str]) -> Texts:
    """A prompt string beside lists of messages: either the lists hold it too, or it is the user message before them."""
    if _shared_length(chosen, rejected) == 0 or chosen[0]["role"] == "assistant":
        return _without_prompt(message("user", prompt) if prompt else (), chosen, rejected, notes)
    texts = _split_messages(chosen, rejected)
    if not any(isinstance(each, Mapping) and each["content"] == prompt for each in texts.prompt):
        raise RowError("chosen and rejected open with the same messages, but 'prompt' is not one of them")
    return texts


def _without_prompt(
    prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...], notes: list[str]
) -> Texts:
    """Messages before messages. Responses that repeat the prompt (perhaps without its system message, or with one that
    it lacks) are cut after it, as in TRL's shape with an implicit prompt."""
    said = _said(prompt)
    repeats = [
        next((k for k in range(len(side), 0, -1) if _is_end(_said(side[:k]), said)), 0) for side in (chosen, rejected)
    ]
    if not prompt or repeats == [0, 0]:
        return Texts(prompt, chosen, rejected)
    if _said(chosen[: repeats[0]]) != _said(rejected[: repeats[1]]):
        raise RowError(
            "one of chosen and rejected repeats the prompt, the other does not" if 0 in repeats
            else "chosen and rejected repeat the prompt, and not the same way"
        )  # fmt: skip
    notes.append("the prompt, which both responses repeat, was cut from them")
    whole = max(prompt, chosen[: repeats[0]], key=len)
    return Texts(whole, chosen[repeats[0] :], rejected[repeats[1] :])


def _is_end(opening: Sequence[tuple[str, str]], prompt: Sequence[tuple[str, str]]) -> bool:
    """Whether one of the two is the other with system messages before it."""
    short, long = sorted((opening, prompt), key=len)
    before = long[: len(long) - len(short)]
    return bool(short) and long[len(before) :] == short and all(role == "system" for role, _ in before)


def _said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in messages]


def _shared_length(left: Sequence[object], right: Sequence[object]) -> int:
    pairs = zip(left, right, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
