"""How do margins grow on the way to the end of a run? A power of the part of the path that is behind.

    A(x) = A(1) x^(power + slowing log A(1)),        x = L(s) / L(S), the path length so far over that of the run

Features align with what they are trained on and speed it up: growth is faster than linear as long as margins are small.
Where they have become large, AdamW's steps are of full length in that direction already, and the power is near 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_POWER, LARGEST_POWER = 0.7, 4.0  # powers that runs have: outside of them the line is an extrapolation


@dataclass(frozen=True)
class GrowthLaw:
    """power: of x in a run that ends at 1 nat;  slowing: of the power, per factor e of the end"""

    power: float
    slowing: float

    def of(self, end: float) -> float:
        """The power for a run that ends at `end` nats."""
        power = self.power + self.slowing * float(torch.tensor(max(end, 1e-3)).log())
        return min(max(power, SMALLEST_POWER), LARGEST_POWER)

    def factors(self, x: Tensor, end: float) -> Tensor:
        """A(x) / A(1)."""
        return x.double() ** self.of(end)
