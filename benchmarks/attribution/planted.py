"""Real features with errors planted in them: exchanged responses, exchanged concepts, contradicting copies."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.packing import model, personas
from margincast.features import features_of
from margincast.models.load import default_cache_dir
from margincast.passes.tokenize import encode
from margincast.records import Features, FeatureSet, PairSet


@dataclass(frozen=True)
class Planted:
    """split: training pairs with errors in them;  wrong: (pairs,) bool, which they are"""

    split: FeatureSet
    wrong: Tensor


def cache() -> Path:
    return Path(os.environ.get("MARGINCAST_CACHE_DIR", default_cache_dir()))


def persona_features(data: str) -> Features:
    """SmolLM2's features of persona data, cached concept by concept: sets that share one do not compute it twice."""
    loaded = model()
    found = []
    pairs = personas(data)
    for name in pairs.concepts:
        encoding = encode(PairSet(tuple(pair for pair in pairs if pair.concept == name)), loaded.tokenizer)
        found.append(features_of(loaded, encoding, *encoding.pairs.split(0.1, 1234), cache_dir=cache()))
    train, heldout = (joined([getattr(each, split) for each in found]) for split in ("train", "heldout"))
    return replace(found[0], train=train, heldout=heldout)


def joined(parts: list[FeatureSet]) -> FeatureSet:
    return FeatureSet(
        PairSet(tuple(pair for part in parts for pair in part.pairs)),
        torch.cat([part.hidden for part in parts]),
        tuple(ids for part in parts for ids in part.chosen_ids),
        tuple(ids for part in parts for ids in part.rejected_ids),
        torch.cat([part.reference_chosen for part in parts]),
        torch.cat([part.reference_rejected for part in parts]),
    )


def drawn(pairs: int, share: float, seed: int) -> Tensor:
    """A random `share` of `pairs`, (pairs,) bool."""
    wrong = torch.zeros(pairs, dtype=torch.bool)
    wrong[torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))[: round(share * pairs)]] = True
    return wrong


def exchange_responses(split: FeatureSet, wrong: Tensor) -> FeatureSet:
    """`split` with chosen and rejected swapped at `wrong`."""
    rows = wrong.tolist()
    pairs = tuple(
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if swap else pair
        for pair, swap in zip(split.pairs, rows, strict=True)
    )
    sides = [
        (c, r) if not swap else (r, c) for c, r, swap in zip(split.chosen_ids, split.rejected_ids, rows, strict=True)
    ]
    return FeatureSet(
        PairSet(pairs),
        split.hidden,
        tuple(chosen for chosen, _ in sides),
        tuple(rejected for _, rejected in sides),
        torch.where(wrong, split.reference_rejected, split.reference_chosen),
        torch.where(wrong, split.reference_chosen, split.reference_rejected),
    )


def rows_of(split: FeatureSet, rows: Tensor) -> FeatureSet:
    """The pairs at `rows`, as often and in the order they are named; repeated ids get a mark of their own."""
    index = rows.tolist()
    seen: dict[str, int] = {}
    pairs = []
    for k in index:
        pair = split.pairs[k]
        times = seen[pair.id] = seen.get(pair.id, 0) + 1
        pairs.append(pair if times == 1 else replace(pair, id=f"{pair.id}#{times}"))
    return FeatureSet(
        PairSet(tuple(pairs)),
        split.hidden[rows],
        tuple(split.chosen_ids[k] for k in index),
        tuple(split.rejected_ids[k] for k in index),
        split.reference_chosen[rows],
        split.reference_rejected[rows],
    )


def flips(split: FeatureSet, seed: int, share: float = 0.1) -> Planted:
    """Responses exchanged in a share of the pairs."""
    wrong = drawn(len(split.pairs), share, seed)
    return Planted(exchange_responses(split, wrong), wrong)


def swapped_concepts(split: FeatureSet, seed: int, share: float = 0.1) -> Planted:
    """A share of the pairs filed under another concept, drawn at random."""
    wrong = drawn(len(split.pairs), share, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    names = split.pairs.concepts
    pairs = []
    for pair, moved in zip(split.pairs, wrong.tolist(), strict=True):
        others = [name for name in names if name != pair.concept]
        to = others[int(torch.randint(len(others), (1,), generator=generator))] if moved else pair.concept
        pairs.append(replace(pair, concept=to))
    return Planted(replace(split, pairs=PairSet(tuple(pairs))), wrong)


def contradicting_copies(split: FeatureSet, seed: int, share: float = 0.1) -> Planted:
    """A share of the pairs there twice, the second time with their responses exchanged: both are to be found."""
    copied = drawn(len(split.pairs), share, seed).nonzero().squeeze(1)
    rows = torch.cat([torch.arange(len(split.pairs)), copied])
    second = torch.zeros(len(rows), dtype=torch.bool)
    second[len(split.pairs) :] = True
    wrong = second.clone()
    wrong[copied] = True
    return Planted(exchange_responses(rows_of(split, rows), second), wrong)
