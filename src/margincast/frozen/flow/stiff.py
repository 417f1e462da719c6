"""In which directions is the flow stiff? In the leading ones of the features, where its steps are implicit.

With P the span of the leading directions, J is the derivative of the velocity within P: a matrix of the few coordinates
in P, which need no accuracy (`integrate`). Every evaluation of the velocity is one pass over the features, in float64
arithmetic whatever they are stored in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.batches import Batch, full_batch
from margincast.recipe.loss import Loss

RANK = 64  # leading directions
SUBSPACE_PASSES = 3
# Coordinates of the implicit part, T x rank: its eigenvectors are found anew at every step.
COORDINATES = 256


class Stiff:
    """The velocity, and its derivative within the leading directions; counts the passes over the features."""

    def __init__(self, space: TokenSpace, loss: Loss, tau: float, rank: int, start: Tensor | None = None) -> None:
        """start: W0's rows, (T, hidden), for a loss without a reference"""
        space.check()
        rank = max(1, min(rank, COORDINATES // space.tokens, *space.features.shape))
        self.space, self.loss, self.tau, self.passes = space, loss, tau, 0
        self.start = 0.0 if start is None else start.to(space.features.device).double()
        whole = next(full_batch(len(space), 1))
        self.batch = Batch(whole.rows.to(space.features.device), whole.weights.to(space.features.device))
        self.basis, coordinates = self._leading(rank)
        self.within = replace(space, features=coordinates)
        pairs = torch.stack([space.chosen, space.rejected], dim=1)
        self.directions, self.direction = torch.unique(pairs.sort(dim=1).values, dim=0, return_inverse=True)
        self.sign = torch.where(space.chosen <= space.rejected, 1.0, -1.0).double() * (space.chosen != space.rejected)

    def zeros(self) -> Tensor:
        return self.space.zeros().double()

    def velocity(self, state: Tensor) -> Tensor:
        """-gradient / tau, (T, hidden): the right side of Eq. 6."""
        self.passes += 1
        return -self.space.gradient(self.start + state, self.loss, self.batch) / self.tau

    def implicit(self, state: Tensor) -> Solver:
        """Solves with I + h J at `state`; reads the coordinates, (pairs, rank), in place of the features."""
        space, rank = self.space, self.basis.shape[1]
        # The part of the margins outside P is small where P holds the leading directions; J need not be exact.
        margins = self.within.margins((self.start + state) @ self.basis)
        curvature = self.loss.curvature(margins).clamp(min=0.0) * (space.beta**2 / len(space) / self.tau)
        J = state.new_zeros(space.tokens, rank, space.tokens, rank)
        for number, (a, b) in enumerate(self.directions.tolist()):
            if a == b:
                continue
            mine = self.direction == number
            part = self.within.features[mine]
            block = part.T @ (curvature[mine, None] * part)  # of delta delta^T (x) g g^T
            J[a, :, a] += block
            J[b, :, b] += block
            J[a, :, b] -= block
            J[b, :, a] -= block
        size = space.tokens * rank
        values, vectors = torch.linalg.eigh(J.reshape(size, size))
        return Solver(self.basis, curvature, values.clamp(min=0.0), vectors)

    def _leading(self, rank: int) -> tuple[Tensor, Tensor]:
        """Orthonormal P, (hidden, rank), near the leading right singular vectors, and G P, by subspace iteration."""
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(
            self.space.features.shape[1], rank, generator=generator, dtype=torch.float64, device=torch.device("cpu")
        ).to(self.space.features.device)
        for _ in range(SUBSPACE_PASSES):
            basis = torch.linalg.qr(self._products(basis)[1]).Q
        return basis, self._products(basis)[0]

    def _products(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """G P and G^T G P from one pass over the features."""
        self.passes += 1
        projected = basis.new_empty(len(self.space), basis.shape[1])
        gram = torch.zeros_like(basis)
        for part in self.space.blocks():
            rows = self.space.features[part].double()
            projected[part] = rows @ basis
            gram += rows.T @ projected[part]
        return projected, gram


@dataclass(frozen=True)
class Solver:
    """basis: (hidden, rank), P;  curvature: (N,), beta^2 f'' / (N tau);  values, vectors: of J within P"""

    basis: Tensor
    curvature: Tensor
    values: Tensor
    vectors: Tensor

    def __call__(self, velocity: Tensor, h: float) -> Tensor:
        """h [I + h J]^-1 velocity, (T, hidden)."""
        inside = velocity @ self.basis
        return h * velocity + (self.within(inside, h) - h * inside) @ self.basis.T

    def within(self, inside: Tensor, h: float) -> Tensor:
        """h [I + h J]^-1 inside, (T, rank), for what lies in P."""
        modes = self.vectors.T @ inside.flatten()
        return (self.vectors @ (h * modes / (1 + h * self.values))).view_as(inside)
