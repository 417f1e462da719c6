"""How do margins and gradients look when only the unembedding moves? (Eq. 6-10)

Softmax normalisers cancel in the margin of single-token responses, so r_i = beta * delta_i^T dW g_i, and only the rows
of dW whose tokens occur in some response ever move. The state is those rows: (T, hidden), T distinct response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss

# Numbers in the largest temporary matrix of a product by row blocks.
BLOCK_NUMBERS = 1 << 22


class Space(Protocol):
    """What a simulation moves in: a state, and the gradient of a batch's loss at it."""

    def check(self) -> None:
        """Raises `InputError` for pairs that cannot be trained on."""
        ...

    def zeros(self) -> Tensor: ...

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor: ...

    def norm(self, gradient: Tensor) -> Tensor:
        """The length of a gradient as it is in W, for clipping."""
        ...


@dataclass(frozen=True)
class TokenSpace:
    """Pairs as seen by the state dW, (T, hidden).

    features: (pairs, hidden), g_i; float64 or float32, or stored in bfloat16 or float16 and calculated with in float32
    chosen, rejected: (pairs,) rows of the state for the response tokens, each in [0, tokens)
    beta: KL strength;  tokens: T
    start: (pairs,) float64 margins at dW = 0, of a policy that is not its reference; None: they are 0
    """

    features: Tensor
    chosen: Tensor
    rejected: Tensor
    beta: float
    tokens: int
    start: Tensor | None = None

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """What states and margins are calculated in."""
        return torch.float64 if self.features.dtype == torch.float64 else torch.float32

    def zeros(self) -> Tensor:
        """The state before training: dW = 0, (T, hidden)."""
        return self.features.new_zeros(self.tokens, self.features.shape[1], dtype=self.dtype)

    def to(self, device: torch.device) -> TokenSpace:
        """This space with its tensors on `device`."""
        chosen, rejected = self.chosen.to(device), self.rejected.to(device)
        start = None if self.start is None else self.start.to(device)
        return replace(self, features=self.features.to(device), chosen=chosen, rejected=rejected, start=start)

    def rows(self, index: Tensor | slice) -> TokenSpace:
        """The pairs at `index`, for a minibatch."""
        start = None if self.start is None else self.start[index]
        chosen, rejected = self.chosen[index], self.rejected[index]
        return replace(self, features=self.features[index], chosen=chosen, rejected=rejected, start=start)

    def logits(self, state: Tensor) -> Tensor:
        """g_i^T dW, (pairs, T)."""
        return torch.cat([self.features[part].to(state.dtype) @ state.T for part in self.blocks()])

    def margins(self, state: Tensor) -> Tensor:
        """r_i = start_i + beta * delta_i^T dW g_i, (pairs,), of pairs trained on or not. Eq. 9."""
        moved = self.moved(state)
        return moved if self.start is None else self.start.to(moved) + moved

    def moved(self, state: Tensor) -> Tensor:
        """What dW adds to the margins, linear in it: beta * delta_i^T dW g_i, (pairs,)."""
        margins = state.new_empty(len(self))
        for part in self.blocks():
            logits = self.features[part].to(state.dtype) @ state.T
            chosen = logits.gather(1, self.chosen[part, None])
            rejected = logits.gather(1, self.rejected[part, None])
            margins[part] = self.beta * (chosen - rejected).squeeze(1)
        return margins

    def pull(self, coefficients: Tensor) -> Tensor:
        """sum_i coefficients_i * delta_i g_i^T, (T, hidden): the right side of Eq. 6-7 for given (pairs,) weights."""
        total = coefficients.new_zeros(self.tokens, self.features.shape[1])
        for part in self.blocks():
            signed = coefficients.new_zeros(len(coefficients[part]), self.tokens)
            signed.scatter_add_(1, self.chosen[part, None], coefficients[part, None])
            signed.scatter_add_(1, self.rejected[part, None], -coefficients[part, None])
            total += signed.T @ self.features[part].to(coefficients.dtype)
        return total

    def gradient(self, state: Tensor, loss: Loss, batch: Batch, margins: Tensor | None = None) -> Tensor:
        """The gradient of sum_i weight_i f(r_i) over the batch, (T, hidden), from one pass over its features. (Eq. 6)

        margins: (batch,), where given, takes those that the gradient was made of

        On a CPU by the fused kernel; elsewhere by matrix products on the device of the features.
        """
        if self.features.device.type == "cpu":
            from margincast.frozen.engine.fused import fused_gradient, plan_visits

            visits = plan_visits(batch.rows, self.chosen, self.rejected)
            return fused_gradient(self.features, visits, state, self.beta, batch.weights, loss, margins, self.start)
        rows = self.rows(batch.rows.to(self.features.device))
        met = rows.margins(state)
        if margins is not None:
            margins.copy_(met)
        return self.beta * rows.pull(batch.weights.to(state) * loss.slope(met))

    def norm(self, gradient: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(gradient)
        return length

    def kernel(self, other: TokenSpace) -> Tensor:
        """C_ij = (delta_i^T delta_j)(g_i^T g_j), (pairs, other pairs). Eq. 10. Where N x N fits: see `pairspace`."""
        shared = (
            (self.chosen[:, None] == other.chosen).to(self.dtype)
            + (self.rejected[:, None] == other.rejected).to(self.dtype)
            - (self.chosen[:, None] == other.rejected).to(self.dtype)
            - (self.rejected[:, None] == other.chosen).to(self.dtype)
        )
        return shared * (self.features.to(self.dtype) @ other.features.to(self.dtype).T)

    def lengths(self) -> Tensor:
        """|g_i|, (pairs,) float64."""
        # By blocks: a norm in another dtype than the features' would copy them all.
        return torch.cat([self.features[part].double().norm(dim=1) for part in self.blocks()])

    def check(self) -> None:
        """Raises `InputError` when there is no pair, or a feature that is not finite."""
        if not len(self):
            raise InputError("there is no pair to train on")
        for part in self.blocks():
            finite = self.features[part].isfinite().all(dim=1)
            if not bool(finite.all()):
                bad = part.start + int((~finite).nonzero()[0])
                raise InputError(f"the features of pair {bad} are not finite; extract them in float32")

    def blocks(self) -> Iterator[slice]:
        """Ranges of rows whose temporary matrices stay small."""
        size = max(1, BLOCK_NUMBERS // max(self.tokens, self.features.shape[1]))
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))
