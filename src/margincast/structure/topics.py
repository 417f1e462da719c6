"""Which topics are in pairs that name none? Clusters of prompt features, as many as repeat, named by telling words.

What the length of a prompt explains is taken out: short prompts of all kinds are no topic. Coordinates are brought to
one scale (some of a model's are a hundred times the others), prompts to norm one, and the leading directions are kept;
k-means does the rest. How many topics there are is decided by `kmeans.stabilities`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.records import Pair, PairSet, Text
from margincast.results import Shown
from margincast.structure.kmeans import Stability, assign, kmeans, stabilities
from margincast.structure.words import prompt_text, telling_words

MOST = 12  # topics that are looked for
SMALLEST = 10  # prompts a topic has on average, at least: of fewer, nothing can be said topic by topic
WIDTH = 20  # leading directions
SAMPLE = 2000  # prompts that topics are found in, of more: memory and time are bounded
FINAL_RESTARTS = 20
WORDS = 3  # that name a topic
ONE = "one topic"


@dataclass(frozen=True)
class Places:
    """Where prompts lie, and the topics among them: how features become places, and the centres found there.

    length: mean log-length of prompts;  slope: (hidden,) of the features in log-length, times which they are corrected
    mean, scale: (hidden,);  directions: (hidden, width);  centre: (hidden,) of the prompts of norm one
    centres: (topics, width)
    """

    length: float
    slope: Tensor
    mean: Tensor
    scale: Tensor
    centre: Tensor
    directions: Tensor
    centres: Tensor

    @classmethod
    def of(cls, hidden: Tensor, lengths: Tensor) -> Places:
        """The places of prompts, (prompts, hidden) and (prompts,) log-lengths: one topic yet, in their middle."""
        length, mean = lengths.mean(), hidden.mean(dim=0)
        apart = lengths - length
        slope = apart @ (hidden - mean) / apart.square().sum().clamp(min=1e-12)
        scale = (hidden - mean - apart[:, None] * slope).std(dim=0, correction=0)
        # A coordinate that only rounding moves says nothing.
        scale = torch.where(scale > 1e-9 * hidden.abs().max(), scale, torch.inf)
        nowhere = hidden.new_zeros(len(mean), 0)
        flat = cls(float(length), slope, mean, scale, torch.zeros_like(mean), nowhere, nowhere[:1])
        unit = flat._unit(hidden, lengths)
        centre = unit.mean(dim=0)
        _, sizes, directions = torch.linalg.svd(unit - centre, full_matrices=False)
        directions = directions[:WIDTH][sizes[:WIDTH] > 1e-9].T
        return replace(flat, centre=centre, directions=directions, centres=hidden.new_zeros(1, directions.shape[1]))

    def points(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(prompts, width)"""
        return (self._unit(hidden, lengths) - self.centre) @ self.directions

    def topic(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(prompts,) the topic whose centre is nearest."""
        return assign(self.points(hidden, lengths)[None], self.centres[None])[0]

    def _unit(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        apart = (lengths - self.length)[:, None]
        return torch.nn.functional.normalize((hidden - self.mean - apart * self.slope) / self.scale, dim=1)


def _log_lengths(pairs: PairSet) -> Tensor:
    """(pairs,) of the prompts, in characters."""
    return torch.tensor([math.log1p(len(prompt_text(pair.prompt))) for pair in pairs], dtype=torch.float64)


@dataclass(frozen=True, repr=False)
class Topics(Shown):
    """Topics of training pairs, and of held-out pairs that were placed among them.

    names: unique, the topic of the most prompts first;  words: of each topic, with their scores in standard errors
    train, heldout: the pairs;  train_topic, heldout_topic: (pairs,) indices into `names`
    stability: of every number of topics that was tried, none where it was given;  places: where the topics lie
    """

    names: tuple[str, ...]
    words: tuple[tuple[tuple[str, float], ...], ...]
    train: PairSet
    train_topic: Tensor
    heldout: PairSet
    heldout_topic: Tensor
    stability: tuple[Stability, ...]
    places: Places

    presenter: ClassVar[str] = "topics"

    def __repr__(self) -> str:
        names = "; ".join(self.names[:4]) + ("; ..." if len(self.names) > 4 else "")
        return f"Topics({len(self.names)} of {len(self.train)} + {len(self.heldout)} pairs: {names})"

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Training and held-out pairs of each topic."""
        counts = [Counter(topic.tolist()) for topic in (self.train_topic, self.heldout_topic)]
        return tuple((counts[0][number], counts[1][number]) for number in range(len(self.names)))

    def place(self, hidden: Tensor, heldout: PairSet) -> Topics:
        """These topics with `heldout`, each in the topic nearest to its prompt's features, (pairs, hidden)."""
        return replace(
            self, heldout=heldout, heldout_topic=self.places.topic(_checked(hidden, heldout), _log_lengths(heldout))
        )

    def relabel(self, pairs: PairSet) -> PairSet:
        """`pairs`, some of the training and held-out ones, in their order with their topic as `concept`.

        Raises `KeyError` for a pair that has no topic.
        """
        topic = {
            pair.id: self.names[number]
            for members, numbers in ((self.train, self.train_topic), (self.heldout, self.heldout_topic))
            for pair, number in zip(members, numbers.tolist(), strict=True)
        }
        return replace(pairs, pairs=tuple(replace(pair, concept=topic[pair.id]) for pair in pairs))


def find_topics(hidden: Tensor, pairs: PairSet, *, count: int | None = None, seed: int = 1234) -> Topics:
    """Topics of training `pairs` by their prompts' features, (pairs, hidden), such as `extract_prompts` gives.

    count: how many; by default the most that repeat as well as any (within a standard error) when they are found in
    halves of the prompts, 1 to 12, and 1 when none repeats better than in Gaussian points with the same spectrum.
    A prompt of several pairs counts once. The result depends on `seed`, not on the order or ids of the pairs.

    Raises `InputError` without pairs, for features that are not finite, and for a `count` below 1 or above the number
    of prompts.
    """
    if not pairs:
        raise InputError("topics are found in training pairs, and there are none")
    wide = _checked(hidden, pairs)
    rows = _first_rows(pairs)
    if count is not None and not 1 <= count <= len(rows):
        raise InputError(f"{count} topics cannot be found in {len(rows)} different prompts; give 1 to {len(rows)}")
    lengths = _log_lengths(pairs)
    places = Places.of(wide[rows], lengths[rows])
    points = places.points(wide[rows], lengths[rows])
    generator = torch.Generator().manual_seed(seed)
    sample = points[torch.randperm(len(points), generator=generator)[:SAMPLE]]
    stability: list[Stability] = []
    if count is None:
        count, stability = _choose(sample, generator)
    places = replace(places, centres=kmeans(sample[None], count, generator, FINAL_RESTARTS)[0])
    places = _largest_first(places, points)
    topic = places.topic(wide, lengths)
    prompts: list[Text] = [pairs[row].prompt for row in rows]
    words = telling_words(prompts, topic[rows].tolist(), len(places.centres))
    return Topics(
        names=_names(words),
        words=tuple(map(tuple, words)),
        train=pairs,
        train_topic=topic,
        heldout=PairSet(()),
        heldout_topic=topic[:0],
        stability=tuple(stability),
        places=places,
    )


def _checked(hidden: Tensor, pairs: PairSet) -> Tensor:
    if hidden.ndim != 2 or len(hidden) != len(pairs):
        raise InputError(f"features of {len(pairs)} pairs are ({len(pairs)}, hidden), got {tuple(hidden.shape)}")
    if not bool(hidden.isfinite().all()):
        row = int((~hidden.isfinite()).any(dim=1).nonzero()[0])
        pair = pairs[row]
        raise InputError(f"{pair.source}, line {pair.line}: the features of the prompt are not finite numbers")
    return hidden.detach().cpu().double()


def _first_rows(pairs: PairSet) -> list[int]:
    """A row of every different prompt, in an order that the prompts alone decide."""

    def key(pair: Pair) -> str:
        return json.dumps(pair.prompt, default=dict)

    first = {key(pair): row for row, pair in reversed(list(enumerate(pairs)))}
    return [first[prompt] for prompt in sorted(first)]


def _choose(points: Tensor, generator: torch.Generator) -> tuple[int, list[Stability]]:
    """How many topics, and the stability of every number that was tried."""
    counts = range(2, min(MOST, len(points) // SMALLEST) + 1)
    if not counts or points.shape[1] == 0:
        return 1, []
    rows, beyond_chance = stabilities(points, counts, generator)
    if not beyond_chance:
        return 1, rows
    best = max(rows, key=lambda row: row.excess)
    return max(row.count for row in rows if row.excess >= best.excess - best.excess_error), rows


def _largest_first(places: Places, points: Tensor) -> Places:
    """The topics that have prompts, by their size: where prompts differ and their features do not, some have none."""
    sizes = torch.bincount(assign(points[None], places.centres[None])[0], minlength=len(places.centres))
    order = sizes.argsort(descending=True, stable=True)
    return replace(places, centres=places.centres[order[sizes[order] > 0]])


def _names(words: Sequence[Sequence[tuple[str, float]]]) -> tuple[str, ...]:
    """Of every topic its most telling words; a number where there are none. A word is of one topic: names differ."""
    if len(words) == 1:
        return (ONE,)
    return tuple(
        "-".join(word for word, _ in telling[:WORDS]) or f"topic {number}"
        for number, telling in enumerate(words, start=1)
    )
