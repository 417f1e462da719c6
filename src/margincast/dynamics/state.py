"""How do margins and gradients look when only the unembedding moves? (Eq. 6-10)

Softmax normalisers cancel in the margin of single-token responses, so r_i = beta * delta_i^T dW g_i, and only the rows
of dW whose tokens occur in some response ever move. The state is those rows: (T, hidden), T distinct response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSpace:
    """Pairs as seen by the state dW, (T, hidden).

    features: (pairs, hidden), g_i
    chosen, rejected: (pairs,) rows of the state for the response tokens, each in [0, tokens)
    beta: KL strength;  tokens: T
    """

    features: Tensor
    chosen: Tensor
    rejected: Tensor
    beta: float
    tokens: int

    def __len__(self) -> int:
        return self.features.shape[0]

    def zeros(self) -> Tensor:
        """The state before training: dW = 0, (T, hidden)."""
        return self.features.new_zeros(self.tokens, self.features.shape[1])

    def rows(self, index: Tensor) -> TokenSpace:
        """The pairs at `index`, for a minibatch."""
        return TokenSpace(self.features[index], self.chosen[index], self.rejected[index], self.beta, self.tokens)

    def margins(self, state: Tensor) -> Tensor:
        """r_i = beta * delta_i^T dW g_i, (pairs,)."""
        logits = self.features @ state.T
        chosen = logits.gather(1, self.chosen[:, None])
        rejected = logits.gather(1, self.rejected[:, None])
        return self.beta * (chosen - rejected).squeeze(1)

    def pull(self, coefficients: Tensor) -> Tensor:
        """sum_i coefficients_i * delta_i g_i^T, (T, hidden): the right side of Eq. 6-7 for given (pairs,) weights."""
        signed = self.features.new_zeros(len(self), self.tokens)
        signed.scatter_add_(1, self.chosen[:, None], coefficients[:, None])
        signed.scatter_add_(1, self.rejected[:, None], -coefficients[:, None])
        return signed.T @ self.features

    def kernel(self, other: TokenSpace) -> Tensor:
        """C_ij = (delta_i^T delta_j)(g_i^T g_j), (pairs, other pairs). Eq. 10. For small problems and tests."""
        eye = torch.eye(self.tokens, dtype=self.features.dtype, device=self.features.device)
        ours = eye[self.chosen] - eye[self.rejected]
        theirs = eye[other.chosen] - eye[other.rejected]
        return (ours @ theirs.T) * (self.features @ other.features.T)
