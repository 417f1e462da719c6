"""What did every training pair contribute to the margin of one pair? The signed sum, with the pairs it runs over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from margincast.errors import InputError
from margincast.records import Pair, PairSet
from margincast.results import Shown

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Contribution:
    """What training on `pair` added to a margin; below 0 it took away."""

    pair: Pair
    value: float


@dataclass(frozen=True, repr=False)
class PairAttribution(Shown):
    """The margin of one pair after `step` steps as a sum over the N training pairs:

        margin = start + values.sum() + residual

    id, split: of the pair whose margin it is, "train" or "heldout"
    pairs: the training pairs;  values: (N,) float64, the contribution of each, in their order
    start: the part of no pair, which only weight decay, losses without a reference and trained adapters have
    margin: as the forecast has it
    """

    presenter: ClassVar[str] = "pair_attribution"

    id: str
    split: str
    step: int
    pairs: PairSet
    values: Tensor
    start: float
    margin: float

    def __repr__(self) -> str:
        return (
            f"PairAttribution({self.id!r}, {self.split}, step {self.step}: margin {self.margin:.3g} "
            f"from {len(self.pairs)} training pairs)"
        )

    @property
    def residual(self) -> float:
        """What the sum leaves of the margin: rounding, or the quadrature where contributions are integrals."""
        return self.margin - self.start - float(self.values.sum())

    def top(self, count: int = 10) -> tuple[Contribution, ...]:
        """The `count` contributions that matter most, by absolute value, largest first; of equal ones the earlier.

        Raises `InputError` for a count below 1 or above N.
        """
        if not 1 <= count <= len(self.pairs):
            raise InputError(f"top takes from 1 to all {len(self.pairs)} training pairs, got {count}")
        order = self.values.abs().argsort(descending=True, stable=True)[:count].tolist()
        return tuple(Contribution(self.pairs[k], float(self.values[k])) for k in order)
