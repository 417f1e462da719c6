"""Feature sets for the theory's tests."""

from __future__ import annotations

import torch

from margincast.frozen.engine.state import TokenSpace


def embedding_lookalike(count: int, d: int = 576, concepts: int = 4, beta: float = 0.01, seed: int = 0) -> TokenSpace:
    """Features shaped like a small language model's on persona data: one strong shared direction (mean cosine .988), a
    decaying spectrum, concept directions of a fifth of the spread, two tokens, labels in near balance."""
    fixed = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=fixed, dtype=torch.float64))[0]
    spectrum = torch.arange(1, d, dtype=torch.float64) ** -0.7
    spectrum = 0.11 * spectrum / spectrum.norm()
    generator = torch.Generator().manual_seed(seed + 1)
    concept = torch.randint(concepts, (count,), generator=generator)
    label = torch.randint(2, (count,), generator=generator)
    spread = torch.randn(count, d - 1, generator=generator, dtype=torch.float64) * spectrum
    signal = 0.02 * (2.0 * label - 1.0)[:, None] * basis[5 + concept]
    features = 40.0 * (basis[0] + spread @ basis[1:] + signal)
    return TokenSpace(features, label, 1 - label, beta, 2)
