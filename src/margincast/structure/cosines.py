"""How alike are the embeddings of two concepts, before and after the shared component is taken away? (Figures 1, 3)"""

from __future__ import annotations

import torch
from torch import Tensor

from margincast.records import PairSet


def sides(pairs: PairSet) -> Tensor:
    """+1 for pairs of a concept's positive cluster, -1 for the other, (pairs,).

    The two clusters of a concept have swapped responses. The positive one is that whose chosen response comes later in
    the alphabet: " Yes" after " No", so for persona data the statements that match the persona.
    """
    return torch.tensor([1 if str(pair.chosen) > str(pair.rejected) else -1 for pair in pairs])


def membership(pairs: PairSet, concepts: tuple[str, ...], side: int = 0) -> Tensor:
    """(concepts, pairs) of 0 and 1: which pairs belong to which concept, of one side (+1, -1) or both (0)."""
    place = {concept: index for index, concept in enumerate(concepts)}
    member = torch.zeros(len(concepts), len(pairs), dtype=torch.float64)
    member[[place[pair.concept] for pair in pairs], range(len(pairs))] = 1.0
    return member if side == 0 else member * (sides(pairs) == side)


def mean_cosines(embeddings: Tensor, member: Tensor) -> Tensor:
    """Average cosine between the embeddings of every two concepts, (concepts, concepts).

    embeddings: (pairs, hidden); member: (concepts, pairs) from `membership`. On the diagonal the average runs over
    pairs of two different embeddings (nan for a concept with fewer than two). Equal to the average over all pairs,
    because the mean of dot products is the dot product of means.
    """
    directions = torch.nn.functional.normalize(embeddings.double(), dim=1)
    counts = member.sum(dim=1)
    sums = member @ directions
    cosines = (sums @ sums.T) / (counts[:, None] * counts[None, :])
    # An embedding's product with itself is 1, or 0 for one of length zero: data that centring leaves nothing of.
    itself = member @ directions.square().sum(dim=1)
    within = (sums.square().sum(dim=1) - itself) / (counts * (counts - 1))
    within[counts < 2] = float("nan")
    cosines[counts == 0, :] = float("nan")
    cosines[:, counts == 0] = float("nan")
    return cosines.fill_diagonal_(0.0) + torch.diag(within)


def centred(embeddings: Tensor) -> Tensor:
    """Embeddings minus their mean, the shared component. (pairs, hidden) float64."""
    wide = embeddings.double()
    return wide - wide.mean(dim=0)
