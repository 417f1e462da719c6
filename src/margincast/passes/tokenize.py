"""Where does the prompt end and the response begin, in tokens? As TRL 1.x draws the line.

Prompt and prompt + response are tokenised; the prompt is their common prefix, the response is what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from margincast.errors import InputError
from margincast.passes.packing import common_prefix
from margincast.records import Pair, PairSet, Text

# Of a rendered prompt, tokens that a response may change without a word: what opens an answer.
OPENING = 2
# More than so many, and more than half of the prompt, is no prompt that the model reads.
MOST_MOVED = 8


@dataclass(frozen=True)
class Encoded:
    """Token ids of one pair. The sequence of a side is `prompt + response`.

    moved: last tokens of the rendered prompt that the chat template writes otherwise before a response
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    moved: int = field(default=0, compare=False, repr=False)

    @property
    def inputs(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the model reads to predict every response token: the last response token is never an input."""
        return self.prompt + self.chosen[:-1], self.prompt + self.rejected[:-1]


@dataclass(frozen=True)
class Encoding:
    """Encoded pairs, row by row as `pairs`; `eos` says whether an end-of-sequence token was appended.

    `truncated` counts the responses cut at `max_length`, `cut_pairs` the pairs they are of.
    notices: what is odd about the tokens and yet may be meant, a sentence each
    """

    pairs: PairSet
    rows: tuple[Encoded, ...]
    eos: bool
    max_length: int
    truncated: int
    cut_pairs: int = 0
    notices: tuple[str, ...] = ()

    @property
    def single_token(self) -> bool:
        return all(len(row.chosen) == 1 and len(row.rejected) == 1 for row in self.rows)

    def select(self, pairs: PairSet) -> Encoding:
        """The rows of `pairs`, which must be among this encoding's pairs."""
        place = {pair.id: index for index, pair in enumerate(self.pairs)}
        rows = tuple(self.rows[place[pair.id]] for pair in pairs)
        return replace(self, pairs=pairs, rows=rows)


def encode(
    pairs: PairSet,
    tokenizer: Any,
    *,
    eos: bool | None = None,
    max_length: int = 1024,
    context: int | None = None,
    on_bad_row: str = "fail",
) -> Encoding:
    """Tokenise `pairs`. `max_length` cuts a sequence at its end, as TRL's `keep_start` does.

    eos: append the tokenizer's end-of-sequence text to standard responses (TRL's rule); None decides by the data: not
    when every response is one token without it, else yes. Conversational responses end as the chat template ends them.

    Raises `InputError` naming file and line for pairs that cannot be used: a prompt that fills `max_length` or the
    model's context, an empty prompt or response in tokens, responses that are the same in tokens, messages that the
    chat template refuses. With `on_bad_row` "skip" such pairs are left out and listed in the `skipped` of the
    encoding's `pairs`.
    """
    limit = min(max_length, context or max_length)
    bare = [] if eos else [_encode_pair(pair, tokenizer, "") for pair in pairs]
    if eos is None:
        # A row that is refused or left out below does not decide for the others.
        usable_rows = [row for row in bare if isinstance(row, Encoded) and not _problem(row, row, limit)]
        eos = not all(len(row.chosen) == 1 and len(row.rejected) == 1 for row in usable_rows)
    ending = _ending(tokenizer, pairs) if eos else ""
    wholes = [_encode_pair(pair, tokenizer, ending) for pair in pairs] if ending or not bare else bare
    rows: list[Encoded] = []
    kept: list[Pair] = []
    problems: list[str] = []
    cut: list[int] = []  # responses of every pair that lose tokens
    for pair, whole in zip(pairs, wholes, strict=True):
        if isinstance(whole, str):
            problems.append(f"{pair.source}, line {pair.line}: {whole}")
            continue
        room = max(limit - len(whole.prompt), 0)
        row = replace(whole, chosen=whole.chosen[:room], rejected=whole.rejected[:room])
        reason = _problem(whole, row, limit)
        if reason:
            problems.append(f"{pair.source}, line {pair.line}: {reason}")
            continue
        cut.append((len(row.chosen) < len(whole.chosen)) + (len(row.rejected) < len(whole.rejected)))
        rows.append(row)
        kept.append(pair)
    if problems and on_bad_row != "skip":
        more = f" (and {len(problems) - 1} more rows)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}; or leave such rows out with --on-bad-row skip")
    if not rows:
        raise InputError(f"no usable pairs are left: {problems[0] if problems else 'the data set is empty'}")
    usable = PairSet(tuple(kept), pairs.duplicates, pairs.skipped + tuple(problems)) if problems else pairs
    notices = tuple(_notices(kept, rows, cut, tokenizer))
    return Encoding(usable, tuple(rows), eos, max_length, sum(cut), sum(map(bool, cut)), notices)


def _ending(tokenizer: Any, pairs: PairSet) -> str:
    """The text of the end-of-sequence token. Raises `InputError` where there is none, or where it is no token."""
    ending = tokenizer.eos_token or ""
    if all(pair.conversational for pair in pairs):
        return ending
    if not ending:
        raise InputError("the tokenizer has no end-of-sequence token; pass --no-eos")
    pieces = tokenizer(ending, add_special_tokens=False)["input_ids"]
    if list(pieces) != [tokenizer.eos_token_id]:
        raise InputError(
            f"the end-of-sequence text {ending!r} is {len(pieces)} tokens to this tokenizer, so responses would not "
            "end with its token; add it as a special token, or pass --no-eos"
        )
    return ending


def _template_notices(pairs: Sequence[Pair], rows: Sequence[Encoded], tokenizer: Any) -> Iterator[str]:
    """What the chat template, or the want of an ending, does to conversations."""
    moved = [pair.id for pair, row in zip(pairs, rows, strict=True) if row.moved > OPENING]
    if moved:
        yield (
            f"the chat template writes the end of {len(moved)} prompts otherwise once a response follows, the first: "
            f"{moved[0]}; the response begins where they part, as in TRL: look with inspect --show"
        )
    spoken = [pair for pair in pairs if _system_of(pair)]
    if spoken and _leaves_out_system(spoken[0], tokenizer):
        yield f"the chat template leaves system messages out; {len(spoken)} pairs have one"
    conversations = sum(pair.conversational for pair in pairs)
    if conversations and not tokenizer.eos_token:
        yield (
            f"the tokenizer has no end-of-sequence token, so nobody can say whether {conversations} conversations end "
            "with one: a model trained on them may not be taught to stop; set the tokenizer's eos_token"
        )


def _system_of(pair: Pair) -> str:
    """The text of the prompt's first system message; empty where it has none."""
    messages = pair.prompt if pair.conversational else ()
    return next((each["content"] for each in messages if each["role"] == "system"), "").strip()  # type: ignore[index]


def _leaves_out_system(pair: Pair, tokenizer: Any) -> bool:
    """Whether other words in the prompt's system messages change no token. Without the message, a template may write
    the same words of its own."""
    other = [
        {**message, "content": message["content"] * 2} if message["role"] == "system" else message  # type: ignore
        for message in pair.prompt
    ]
    was, now = (chat_tokens(tokenizer, messages, add_generation_prompt=True) for messages in (pair.prompt, other))
    return was == now


def _notices(pairs: Sequence[Pair], rows: Sequence[Encoded], cut: Sequence[int], tokenizer: Any) -> Iterator[str]:
    bos, eos = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    twice = sum(bos is not None and row.prompt[:2] == (bos, bos) for row in rows)
    if twice:
        yield (
            f"{twice} of {len(rows)} prompts begin with {tokenizer.bos_token} twice: their text has it, and the "
            "tokenizer puts it there too; take it out of the text"
        )
    yield from _template_notices(pairs, rows, tokenizer)
    whole = [
        row for pair, row, lost in zip(pairs, rows, cut, strict=True) if pair.conversational and not lost
    ]  # what is cut has no end to look at
    endless = sum(eos not in row.chosen or eos not in row.rejected for row in whole)
    if eos is not None and endless:
        yield (
            f"{endless} of {len(rows)} conversations end without {tokenizer.eos_token}, the end-of-sequence token: the "
            "chat template does not write it, and a model trained on them is not taught to stop"
        )


def _problem(whole: Encoded, row: Encoded, limit: int) -> str | None:
    if not whole.prompt:
        return "the prompt has no tokens, so nothing predicts the response"
    if len(whole.prompt) >= limit:
        return (
            f"the prompt has {len(whole.prompt)} tokens and fills the limit of {limit} (the smaller of max_length and "
            "the model's context), where sequences are cut at their end: nothing of the responses is left; shorten it"
        )
    if not whole.chosen or not whole.rejected:
        return f"the {'rejected' if whole.chosen else 'chosen'} response has no tokens of its own after the prompt"
    if row.chosen == row.rejected:
        where = "" if whole.chosen == whole.rejected else f" once cut at {limit} tokens"
        return f"chosen and rejected are the same in tokens{where}"
    return None


def _encode_pair(pair: Pair, tokenizer: Any, ending: str) -> Encoded | str:
    """The pair in tokens, or in words why the chat template does not take it."""
    if pair.conversational:
        try:
            prompt = chat_tokens(tokenizer, pair.prompt, add_generation_prompt=True)
            chosen, rejected = (chat_tokens(tokenizer, (*pair.prompt, *side)) for side in (pair.chosen, pair.rejected))
        except TemplateRefuses as refusal:
            return f"the chat template refuses these messages: {refusal}"
    else:
        prompt, chosen, rejected = (
            tuple(tokenizer(text)["input_ids"])
            for text in (
                pair.prompt,
                _join(pair.prompt, pair.chosen, ending),
                _join(pair.prompt, pair.rejected, ending),
            )
        )
    length = min(common_prefix(prompt, chosen), common_prefix(prompt, rejected))
    moved = len(prompt) - length if pair.conversational else 0
    if moved > MOST_MOVED and 2 * moved > len(prompt):
        return (
            f"the chat template writes {moved} of the prompt's {len(prompt)} tokens otherwise once a response follows, "
            "and they would count as response; take out of it what changes with the time or the number of messages"
        )
    return Encoded(prompt[:length], chosen[length:], rejected[length:], moved)


def message_starts(pair: Pair, row: Encoded, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Where in the tokens of its responses the messages of each begin, chosen then rejected; the first at 0."""
    found: list[list[int]] = []
    for messages, response in ((pair.chosen, row.chosen), (pair.rejected, row.rejected)):
        starts = [0]
        for count in range(1, len(messages) if pair.conversational else 1):
            before = chat_tokens(tokenizer, (*pair.prompt, *messages[:count]))
            starts.append(max(starts[-1], common_prefix(before, row.prompt + response) - len(row.prompt)))
        found.append(starts)
    return found[0], found[1]


def _join(prompt: Text, response: Text, ending: str) -> str:
    assert isinstance(prompt, str)
    assert isinstance(response, str)
    return prompt + response if ending and response.endswith(ending) else prompt + response + ending


class TemplateRefuses(Exception):  # noqa: N818 (what a template does)
    """In the template's own words."""


def chat_tokens(tokenizer: Any, messages: Sequence[Any], **options: Any) -> tuple[int, ...]:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the data are conversational but the tokenizer has no chat template; use a chat model's tokenizer"
        )
    plain = [dict(message) for message in messages]
    try:
        tokens = tokenizer.apply_chat_template(plain, tokenize=True, **options)
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A template is a program: beside refusing on purpose it fails as Python does.
        words = " ".join(str(error).split()) or type(error).__name__
        raise TemplateRefuses(words) from error
    return tuple(tokens["input_ids"] if hasattr(tokens, "keys") else tokens)
