"""Do real embeddings look like the preference distribution of Section 4.1? Estimates of b, v, c_k and of sharing.

Each concept is a pair of clusters N(b +- c_k, v^2 I). On real features the two cluster means of concept k are
estimated, c_k is half their difference, b the average of their midpoints. Lengths are in units where the mean length of
the c_k is 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.records import PairSet
from margincast.structure.cosines import membership, sides


@dataclass(frozen=True)
class ClusterEstimate:
    """Estimates of Section 4.1's parameters from features.

    concepts: those that have both clusters (at least two pairs each), in the order of `gram` and `angle_with_shared`
    unit: length of the mean concept vector in the features' own units
    shared_norm: l_b;  noise: v, the within-cluster standard deviation per coordinate;  noise_energy: d v^2
    effective_dimension: (tr S)^2 / tr S^2 of the pooled within-cluster covariance S, at most d; low when pairs are few
    against d (235 for round noise of d = 576 from 400 pairs)
    lengths: |c_k|, unbiased (0 where noise explains the whole distance);  gram: (K, K) cosines between the c_k
    angle_with_shared: (K,) cosine between c_k and b;  midpoint_spread: root mean square distance of midpoints from b
    smallest_cluster: Q, the pairs of the smallest cluster
    """

    concepts: tuple[str, ...]
    unit: float
    shared_norm: float
    noise: float
    noise_energy: float
    effective_dimension: float
    lengths: Tensor
    gram: Tensor
    angle_with_shared: Tensor
    midpoint_spread: float
    smallest_cluster: int


def estimate_clusters(embeddings: Tensor, pairs: PairSet) -> ClusterEstimate | None:
    """Estimates from (pairs, hidden) embeddings; None when no concept has two clusters of at least two pairs.

    Clusters are of pairs that have the same two responses: where nearly every pair has responses of its own, as in chat
    data, which of them is first in the alphabet says nothing.
    """
    wide = embeddings.double()
    plus, minus = (membership(pairs, pairs.concepts, side) for side in (1, -1))
    both = (plus.sum(dim=1) >= 2) & (minus.sum(dim=1) >= 2) & _repeating(pairs)
    if not bool(both.any()):
        return None
    plus, minus = plus[both], minus[both]
    counts_plus, counts_minus = plus.sum(dim=1), minus.sum(dim=1)
    mean_plus = plus @ wide / counts_plus[:, None]
    mean_minus = minus @ wide / counts_minus[:, None]
    within, energy = _within(wide, ((plus, mean_plus), (minus, mean_minus)))
    half = (mean_plus - mean_minus) / 2
    # A mean of n noisy points is off by tr(S)/n in square: without the correction noise would pass for distance.
    excess = (energy[0] / counts_plus + energy[1] / counts_minus) / 4
    lengths = (half.square().sum(dim=1) - excess).clamp(min=0.0).sqrt()
    unit = float(lengths.mean())
    if unit == 0.0:
        return None
    midpoints = (mean_plus + mean_minus) / 2
    shared = midpoints.mean(dim=0)
    directions = torch.nn.functional.normalize(half, dim=1)
    trace = float(within.square().sum()) / (len(within) - 2 * int(both.sum()))
    hidden = wide.shape[1]
    return ClusterEstimate(
        concepts=tuple(name for name, keep in zip(pairs.concepts, both.tolist(), strict=True) if keep),
        unit=unit,
        shared_norm=float(shared.norm()) / unit,
        noise=(trace / hidden) ** 0.5 / unit,
        noise_energy=trace / unit**2,
        effective_dimension=_effective_dimension(within),
        lengths=lengths / unit,
        gram=directions @ directions.T,
        angle_with_shared=directions @ torch.nn.functional.normalize(shared, dim=0),
        midpoint_spread=float((midpoints - shared).square().sum(dim=1).mean().sqrt()) / unit,
        smallest_cluster=int(torch.cat([counts_plus, counts_minus]).min()),
    )


def _repeating(pairs: PairSet) -> Tensor:
    """Which concepts have on average two pairs or more of the same two responses, in either order, (concepts,)."""
    responses: dict[str, set[frozenset[str]]] = {concept: set() for concept in pairs.concepts}
    for pair in pairs:
        responses[pair.concept].add(frozenset((str(pair.chosen), str(pair.rejected))))
    counts = Counter(pair.concept for pair in pairs)
    return torch.tensor([2 * len(different) <= counts[concept] for concept, different in responses.items()])


def _within(wide: Tensor, groups: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """Deviations of every member from its cluster mean, stacked, and tr(S) of every cluster, (concepts,) per side."""
    deviations, energy = [], []
    for member, means in groups:
        concept, row = member.nonzero(as_tuple=True)
        deviation = wide[row] - means[concept]
        deviations.append(deviation)
        squares = torch.zeros(len(means), dtype=wide.dtype).index_add(0, concept, deviation.square().sum(dim=1))
        energy.append(squares / (member.sum(dim=1) - 1))
    return torch.cat(deviations), energy


def _effective_dimension(deviations: Tensor) -> float:
    small = deviations.T @ deviations if deviations.shape[0] > deviations.shape[1] else deviations @ deviations.T
    return float(small.trace().square() / small.square().sum())


@dataclass(frozen=True)
class TokenSharing:
    """How concepts share response tokens.

    max_token_count: Z, the largest number of concepts whose responses hold one and the same token
    interacting_concepts: the largest |S_k|, the number of other concepts that share a token with concept k
    responses: per concept the tokens its positive and its negative cluster prefer, when every concept has just one pair
    of single-token responses, as in Section 4.1; else None
    """

    max_token_count: int
    interacting_concepts: int
    responses: tuple[tuple[int, int], ...] | None


def token_sharing(
    pairs: PairSet, chosen_ids: Sequence[Sequence[int]], rejected_ids: Sequence[Sequence[int]]
) -> TokenSharing:
    """Sharing over the response tokens of `pairs`; for multi-token responses over all their tokens."""
    tokens: dict[str, set[int]] = {concept: set() for concept in pairs.concepts}
    preferred: dict[str, set[tuple[Sequence[int], Sequence[int]]]] = {concept: set() for concept in pairs.concepts}
    for pair, side, chosen, rejected in zip(pairs, sides(pairs).tolist(), chosen_ids, rejected_ids, strict=True):
        tokens[pair.concept].update(chosen, rejected)
        preferred[pair.concept].add((chosen, rejected) if side == 1 else (rejected, chosen))
    counts = Counter(token for members in tokens.values() for token in members)
    interacting = [
        sum(1 for other, theirs in tokens.items() if other != concept and members & theirs)
        for concept, members in tokens.items()
    ]
    single = all(len(ids) == 1 for ids in (*chosen_ids, *rejected_ids))
    one_pair = single and all(len(both) == 1 for both in preferred.values())
    responses = tuple((plus[0], minus[0]) for both in preferred.values() for plus, minus in both) if one_pair else None
    return TokenSharing(max(counts.values()), max(interacting), responses)
