"""Small data sets in which it is known what is wrong."""

import torch
from torch import Tensor

from margincast.records import FeatureSet, Pair, PairSet


def made(hidden: Tensor, prefers_yes: Tensor, concept: Tensor, prompts: list[str] | None = None) -> FeatureSet:
    """Pairs with given features that prefer " Yes" (token 1) or " No" (token 0)."""
    pairs = []
    for k, (yes, name) in enumerate(zip(prefers_yes.tolist(), concept.tolist(), strict=True)):
        answers = (" Yes", " No") if yes else (" No", " Yes")
        prompt = prompts[k] if prompts else f"Is number {k} something you would say?"
        pairs.append(Pair(f"p{k}", f"concept-{name}", prompt, *answers, source="made.jsonl", line=k + 1))
    ids = [(1,) if yes else (0,) for yes in prefers_yes.tolist()]
    others = [(0,) if yes else (1,) for yes in prefers_yes.tolist()]
    zeros = torch.zeros(len(pairs), dtype=torch.float64)
    return FeatureSet(PairSet(tuple(pairs)), hidden, tuple(ids), tuple(others), zeros, zeros)


def two_concepts(pairs: int, hidden: int, seed: int, noise: float = 0.6) -> tuple[FeatureSet, Tensor]:
    """Two concepts in orthogonal directions beside a large shared component; a tenth of the labels is wrong."""
    generator = torch.Generator().manual_seed(seed)
    concept = torch.arange(pairs) % 2
    sign = torch.where((torch.arange(pairs) // 2) % 2 == 0, 1.0, -1.0).double()
    features = noise / hidden**0.5 * torch.randn(pairs, hidden, generator=generator, dtype=torch.float64)
    features[:, 0] += 20.0
    features[torch.arange(pairs), 1 + concept] += sign
    wrong = torch.zeros(pairs, dtype=torch.bool)
    wrong[torch.randperm(pairs, generator=generator)[: pairs // 10]] = True
    return made(features, (sign > 0) ^ wrong, concept), wrong
