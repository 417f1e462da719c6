"""Which pairs are held out? A share of every concept, drawn by a seed, or those that came as held-out pairs.

Pairs with one prompt stay on one side: a response learned to the very prompt that judges it makes held-out numbers too
good. Two prompts are one when they differ in white space and case alone.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from margincast.errors import InputError

if TYPE_CHECKING:
    from margincast.records import Pair, Text


def prompt_key(prompt: Text) -> Hashable:
    """The same for prompts that differ in white space and case alone; a text is the user's message."""
    if isinstance(prompt, str):
        return (("user", _folded(prompt)),)
    return tuple((message["role"], _folded(message["content"])) for message in prompt)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def repeated_prompts(pairs: Sequence[Pair]) -> int:
    """How many of the pairs have a prompt that another pair has too."""
    counts = Counter(prompt_key(pair.prompt) for pair in pairs)
    return sum(count for count in counts.values() if count > 1)


def shared_prompts(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """(held-out id, training id) of every pair that came as a held-out one, and has the prompt of a training pair."""
    training: dict[Hashable, str] = {}
    for pair in pairs:
        if pair.split == "train":
            training.setdefault(prompt_key(pair.prompt), pair.id)
    heldout = ((pair.id, prompt_key(pair.prompt)) for pair in pairs if pair.split == "heldout")
    return [(name, training[key]) for name, key in heldout if key in training]


def refuse_leakage(pairs: Sequence[Pair]) -> None:
    """Raises `InputError` where pairs came split and a prompt is on both sides."""
    if shared := shared_prompts(pairs):
        heldout, train = shared[0]
        count = sum(pair.split == "heldout" for pair in pairs)
        raise InputError(
            f"{len(shared)} of {count} held-out pairs have a prompt that training pairs have too, the first: {heldout} "
            f"has that of {train}; remove them, or count them all the same with --allow_leakage"
        )


def heldout_ids(pairs: Sequence[Pair], holdout: float, seed: int) -> set[str]:
    """The ids of the pairs to hold out: those that came so, and of the others `holdout` of every concept.

    Concepts are drawn one by one, in order of their first pairs. A prompt that an earlier concept (or the data
    themselves) put on one side stays there.
    """
    held = {pair.id for pair in pairs if pair.split == "heldout"}
    side: dict[Hashable, bool] = {}  # of a prompt: whether it is held out
    prompts = {pair.id: prompt_key(pair.prompt) for pair in pairs}
    by_concept: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        if pair.split is None:
            by_concept[pair.concept].append(pair.id)
        else:
            side[prompts[pair.id]] = pair.split == "heldout"
    for concept, members in by_concept.items():
        random.Random(f"{seed}/{concept}").shuffle(members)
        share = min(max(round(holdout * len(members)), 1), len(members) - 1)
        _draw([prompts[name] for name in members], share, side)
        held |= {name for name in members if side[prompts[name]]}
    return held


def _draw(prompts: Sequence[Hashable], share: int, side: dict[Hashable, bool]) -> None:
    """Decide the prompts of one concept, in their order: held out as long as `share` pairs are not passed."""
    sizes = Counter(prompts)  # in order of their first pairs
    undecided = [key for key in sizes if key not in side]
    room = share - sum(size for key, size in sizes.items() if side.get(key))
    for key in undecided:
        side[key] = sizes[key] <= room
        room -= sizes[key] * side[key]
    if undecided and len(sizes) > 1 and share and not any(side[key] for key in sizes):
        side[min(undecided, key=sizes.__getitem__)] = True  # more pairs than asked for, rather than none
