"""What of the eval data is measured, in tokens? All pairs up to a number, and texts up to a number of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from margincast.errors import InputError
from margincast.evaldata.read import EvalData, EvalSet, EvalText
from margincast.passes.tokenize import Encoding, encode
from margincast.records import PairSet
from margincast.runs.store import key_of

# Of each set, at every recorded step. Of `builtin` on SmolLM2 that is about 8% of a persona run of 60 steps of 32:
# twice as much took 23 s of two cores a record, where a step took 15 and recording the run's own pairs 39.
TEXT_TOKENS, MOST_PAIRS = 512, 50
WINDOW = 256  # tokens of a text at most: of more, the first
SEED = 0


@dataclass(frozen=True)
class Scored:
    """A text in tokens `ids`, those from `start` on predicted."""

    ids: tuple[int, ...]
    start: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads to predict them."""
        return self.ids[:-1]

    @property
    def targets(self) -> tuple[int, ...]:
        return self.ids[self.start :]


@dataclass(frozen=True)
class EncodedSet:
    """An `EvalSet` as it is measured.

    texts: in tokens;  prompts: token ids of those texts that ask for an answer;  pairs: in tokens
    """

    name: str
    texts: tuple[Scored, ...]
    prompts: tuple[tuple[int, ...], ...]
    pairs: Encoding | None


@dataclass(frozen=True)
class EncodedEval:
    """notes: what is not measured, a line each
    context: how many tokens fit into the model, where that is known
    """

    sets: tuple[EncodedSet, ...]
    notes: tuple[str, ...] = ()
    context: int | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and tokens of what is measured."""
        return key_of([[each.name for each in self.sets], list(self.sequences)])

    @property
    def sequences(self) -> Iterator[tuple[tuple[int, ...], ...]]:
        """All token ids, of every text and pair."""
        for each in self.sets:
            yield from ((text.ids,) for text in each.texts)
            yield from ((prompt,) for prompt in each.prompts)
            yield from ((row.prompt, row.chosen, row.rejected) for row in (each.pairs.rows if each.pairs else ()))

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """Every prompt that is to be answered."""
        return [prompt for each in self.sets for prompt in each.prompts]


def encode_eval(
    data: EvalData,
    tokenizer: Any,
    *,
    eos: bool | None = None,
    max_length: int = 1024,
    context: int | None = None,
    on_bad_row: str = "fail",
) -> EncodedEval:
    """`data` in tokens. Arguments as of `passes.tokenize.encode`, for pairs.

    Raises `InputError` for pairs that the model cannot read, and for texts of no token.
    """
    sets, notes = [], []
    for each in data.sets:
        texts, measured = _some_texts(each.texts, tokenizer, context)
        if each.texts and not texts:
            raise InputError(f"eval data {each.name}: no text has a token to predict")
        if len(texts) < len(each.texts):
            tokens = sum(len(text.targets) for text in texts)
            notes.append(
                f"eval data {each.name}: {len(texts)} of {len(each.texts)} texts are measured, {tokens} tokens"
            )
        prompts = tuple(_question(text, tokenizer) for text in measured if text.prompt)
        pairs = _some_pairs(each)
        if pairs is not None and each.pairs is not None and len(pairs) < len(each.pairs):
            notes.append(f"eval data {each.name}: {len(pairs)} of {len(each.pairs)} pairs are measured")
        encoding = None
        if pairs is not None:
            encoding = encode(
                pairs, tokenizer, eos=eos or None, max_length=max_length, context=context, on_bad_row=on_bad_row
            )
        sets.append(EncodedSet(each.name, texts, prompts, encoding))
    return EncodedEval(tuple(sets), tuple(notes), context)


def _some_pairs(data: EvalSet) -> PairSet | None:
    if data.pairs is None:
        return None
    return data.pairs.spread(MOST_PAIRS)


def _some_texts(
    texts: Sequence[EvalText], tokenizer: Any, context: int | None
) -> tuple[tuple[Scored, ...], list[EvalText]]:
    """Texts drawn by a fixed seed until there are `TEXT_TOKENS` tokens, in their order."""
    order = list(range(len(texts)))
    random.Random(SEED).shuffle(order)
    found: dict[int, Scored] = {}
    count = 0
    for index in order:
        if count >= TEXT_TOKENS:
            break
        scored = _scored(texts[index], tokenizer, context)
        if scored.targets:
            found[index] = scored
            count += len(scored.targets)
    kept = sorted(found)
    return tuple(found[index] for index in kept), [texts[index] for index in kept]


def _scored(text: EvalText, tokenizer: Any, context: int | None) -> Scored:
    """Of a conversation that ends with an answer, the answer is predicted; of anything else all but the first token."""
    if not isinstance(text.text, str) and text.text[-1]["role"] == "assistant":
        prompt = _chat(text, tokenizer, text.text[:-1], add_generation_prompt=True)
        whole = _chat(text, tokenizer, text.text)
        start = next((k for k, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]), len(prompt))
        return Scored(whole[: min(start + WINDOW, context or len(whole))], max(start, 1))
    plain = text.text if isinstance(text.text, str) else text.text[-1]["content"]
    ids = tuple(tokenizer(plain)["input_ids"])
    return Scored(ids[: min(WINDOW, context or WINDOW)], 1)


def _question(text: EvalText, tokenizer: Any) -> tuple[int, ...]:
    """A prompt as the model is asked it: a user's message where the tokenizer has a chat template."""
    messages = ({"role": "user", "content": text.text},) if isinstance(text.text, str) else text.text
    if getattr(tokenizer, "chat_template", None):
        return _chat(text, tokenizer, messages, add_generation_prompt=True)
    return tuple(tokenizer(messages[-1]["content"])["input_ids"])


def _chat(text: EvalText, tokenizer: Any, messages: Sequence[Any], **options: Any) -> tuple[int, ...]:
    from margincast.passes.tokenize import TemplateRefuses, chat_tokens

    try:
        return chat_tokens(tokenizer, messages, **options)
    except TemplateRefuses as refusal:
        raise InputError(
            f"{text.source}, line {text.line}: the chat template refuses these messages: {refusal}"
        ) from refusal
