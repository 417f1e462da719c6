"""What would the margin of a pair be had it taken no part in training? Exact for a ridge fit, for all pairs at once.

A ridge fit of targets t in the kernel K = U diag(e) U^T gives margins f = H t, H = U diag(e/(e+lambda)) U^T. Left out,
the margin of pair i is

    r_{-i} = t_i - (t_i - f_i) / (1 - H_ii)

and t_i itself cancels: what the label of a pair says has no part in its own prediction. With t = 1 this is
1 - alpha_i / [(K + lambda I)^-1]_ii. Time 1/lambda on the flow of the squared loss and ridge lambda end much alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.diagnose.kernel import KernelSettings, PairPoints, blocks, pair_kernel

# Beyond so many pairs the kernel is that of the projections on as many of them (Nystroem): memory stays N x LANDMARKS.
LANDMARKS = 4096


@dataclass(frozen=True)
class Spectrum:
    """K = vectors diag(energies) vectors^T. vectors: (pairs, rank) orthonormal columns; energies: (rank,) >= 0"""

    vectors: Tensor
    energies: Tensor

    def left_out(self, targets: Tensor, ridge: float) -> Tensor:
        """r_{-i} of every pair, (pairs,), for `targets` (pairs,)."""
        shrink = self.energies / (self.energies + ridge)
        fitted = self.vectors @ (shrink * (self.vectors.T @ targets))
        leverage = self.vectors.square() @ shrink
        return targets - (targets - fitted) / (1 - leverage).clamp_min(1e-12)

    def along_flow(self, targets: Tensor, times: Tensor) -> Tensor:
        """In-sample margins (times, pairs) of the flow of the squared loss: (I - exp(-K t)) targets."""
        learned = -torch.expm1(-times[:, None] * self.energies)
        return (learned * (self.vectors.T @ targets)) @ self.vectors.T


def spectrum_of(kernel: Tensor) -> Spectrum:
    """Of a symmetric positive semi-definite (pairs, pairs) kernel, such as `tokens.sequence_kernel` makes."""
    energies, vectors = torch.linalg.eigh(kernel.double())
    return Spectrum(vectors, energies.clamp_min(0.0))


def spectrum(points: PairPoints, settings: KernelSettings, seed: int = 0, landmarks: int = LANDMARKS) -> Spectrum:
    """Of the pair kernel; exact up to `landmarks` pairs, beyond them its Nystroem form K_nm K_mm^-1 K_mn."""
    if len(points) <= landmarks:
        return spectrum_of(pair_kernel(points, points, settings))
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:landmarks]
    some = points.select(chosen)
    energies, vectors = torch.linalg.eigh(pair_kernel(some, some, settings))
    kept = energies > 1e-10 * energies[-1]
    root = vectors[:, kept] / energies[kept].sqrt()
    factor = torch.cat([pair_kernel(points.select(rows), some, settings) @ root for rows in blocks(len(points), 4096)])
    energies, vectors = torch.linalg.eigh(factor.T @ factor)
    kept = energies > 1e-10 * energies[-1]
    return Spectrum(factor @ (vectors[:, kept] / energies[kept].sqrt()), energies[kept])
