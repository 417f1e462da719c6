"""What is left of features once the component that all of them share is taken away? It would drown every signal.

    ghat_i = z_i / |z_i|,   z_i = (Sigma + rho s I)^(-1/4) (g_i - mean g)

with Sigma the covariance of the training features and s its largest eigenvalue. The power -1/4 divides a direction of
standard deviation sigma by sigma^(1/2): half of a whitening (-1/2), which would make noise as loud as signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

POWER, RIDGE = 0.25, 1e-3
BLOCK = 4096


@dataclass(frozen=True)
class Treatment:
    """A map of features found on training pairs. mean: (hidden,); shape: (hidden, hidden), (Sigma + rho s I)^-power"""

    mean: Tensor
    shape: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Treated features of unit length, (pairs, hidden) float32; a feature equal to the mean stays zero."""
        treated = torch.empty(hidden.shape, dtype=torch.float32)
        for start in range(0, len(hidden), BLOCK):
            part = (hidden[start : start + BLOCK].to(self.mean) - self.mean) @ self.shape
            treated[start : start + BLOCK] = part / part.norm(dim=1, keepdim=True).clamp_min(1e-300)
        return treated


def treatment(hidden: Tensor, power: float = POWER, ridge: float = RIDGE) -> Treatment:
    """The treatment that fits the training features `hidden`, (pairs, hidden). Memory: O(hidden^2) beside them."""
    total = hidden.new_zeros(hidden.shape[1], dtype=torch.float64)
    for start in range(0, len(hidden), BLOCK):
        total += hidden[start : start + BLOCK].double().sum(dim=0)
    mean = total / len(hidden)
    covariance = hidden.new_zeros(hidden.shape[1], hidden.shape[1], dtype=torch.float64)
    for start in range(0, len(hidden), BLOCK):
        part = hidden[start : start + BLOCK].double() - mean
        covariance.addmm_(part.T, part, alpha=1 / len(hidden))
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0.0)
    floor = max(ridge * float(values[-1]), torch.finfo(torch.float64).tiny)
    return Treatment(mean, (vectors * (values + floor) ** -power) @ vectors.T)
