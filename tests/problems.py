"""Small systems for the frozen dynamics: drawn at random from a seed, or with an answer known in closed form."""

from __future__ import annotations

import math

import torch
from scipy.special import lambertw
from torch import Tensor

from margincast.frozen.engine.state import TokenSpace
from margincast.records import Features, FeatureSet, Pair, PairSet


def random_space(
    pairs: int, hidden: int, tokens: int, beta: float, seed: int, dtype: torch.dtype = torch.float64
) -> TokenSpace:
    """Gaussian features; every pair prefers one of `tokens` response tokens to another."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(pairs, hidden, generator=generator, dtype=torch.float64).to(dtype)
    chosen = torch.randint(tokens, (pairs,), generator=generator)
    step = torch.randint(1, tokens, (pairs,), generator=generator)
    return TokenSpace(features, chosen, (chosen + step) % tokens, beta, tokens)


def repeated_pair(pairs: int, size: float, beta: float) -> TokenSpace:
    """`pairs` copies of one pair whose feature has length `size`: `repeated_margin` is its margin along the flow."""
    features = torch.zeros(pairs, 3, dtype=torch.float64)
    features[:, 1] = size
    return TokenSpace(features, torch.zeros(pairs).long(), torch.ones(pairs).long(), beta, 2)


def repeated_margin(size: float, beta: float, time: float) -> float:
    """dr/dt = 2 beta^2 size^2 sigma(-r) gives r + e^r = 1 + k t, k = 2 beta^2 size^2; r by Lambert's W."""
    right = 1.0 + 2.0 * (beta * size) ** 2 * time
    return right - float(lambertw(math.exp(right)).real)


def make_pairs(count: int, concepts: int = 1, start: int = 0) -> PairSet:
    """Persona-shaped pairs, concepts in turn, " Yes" and " No" preferred by turns within a concept."""
    made = []
    for k in range(start, start + count):
        answers = (" Yes", " No") if (k // concepts) % 2 == 0 else (" No", " Yes")
        prompt = f"Is the statement number {k} something you would say?\n"
        made.append(Pair(f"p{k}", f"concept-{k % concepts}", prompt, *answers, source="made.jsonl", line=k + 1))
    return PairSet(tuple(made))


def make_features(
    unembedding: Tensor, hidden: Tensor, chosen: Tensor, rejected: Tensor, heldout: int, scale: float = 1.0
) -> Features:
    """`Features` of a V x d head over given hidden states, the last `heldout` of them held out.

    chosen, rejected: (pairs,) vocabulary entries. Reference log-probabilities from the softmax over the vocabulary.
    """
    tokens = torch.unique(torch.cat([chosen, rejected]))
    logps = torch.log_softmax(scale * hidden.double() @ unembedding.double().T, dim=-1)

    def part(rows: slice, start: int) -> FeatureSet:
        count = len(hidden[rows])
        index = torch.arange(count)
        return FeatureSet(
            pairs=make_pairs(count, 2, start),
            hidden=hidden[rows],
            chosen_ids=tuple((int(token),) for token in chosen[rows]),
            rejected_ids=tuple((int(token),) for token in rejected[rows]),
            reference_chosen=logps[rows][index, chosen[rows]],
            reference_rejected=logps[rows][index, rejected[rows]],
        )

    cut = len(hidden) - heldout
    return Features(
        train=part(slice(0, cut), 0),
        heldout=part(slice(cut, None), cut),
        tokens=tokens,
        unembedding=unembedding[tokens],
        model="a made head",
        model_hash="0",
        scale=scale,
    )
