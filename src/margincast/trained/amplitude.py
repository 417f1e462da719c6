"""How large do margins get? A power law of how far the run goes, how many pairs it takes, and how alike they are.

In nats, that is margins over beta, the mean margin without offsets is about

    A = scale L^length P^pairs sigma^spread      (times `adapter` for LoRA)

L: path length, the sum of learning rates. AdamW's steps do not depend on the size of the gradient nor on beta, so that
runs of the same L get about as far. P: the pairs that training takes, as often as it takes them; more of them make more
of the same path, since less of it is noise. sigma: how far the frozen shape of held-out pairs spreads around its mean.
Pairs that are learned alike lift each other; where some gain and some lose, much of the path is spent on telling them
apart, and the exponent is negative.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from margincast.trained.shape import spread

ALPHA = 0.6  # of the shape whose spread is taken: where runs of this size are
WIDEST = 4.0  # spreads are held within 1/4 and 4: runs of the bank have .4 to 1.6


@dataclass(frozen=True)
class AmplitudeLaw:
    """The exponents of A."""

    scale: float
    length: float
    pairs: float
    spread: float
    adapter: float

    def at(self, length: float, pairs: int, spread: float, lora: bool) -> float:
        """A in nats. length: path length in units of `time.UNIT`;  spread: see `bounded_spread`"""
        value = self.scale * length**self.length * float(pairs) ** self.pairs * spread**self.spread
        return float(value * (self.adapter if lora else 1.0))


def bounded_spread(shape: Tensor) -> float:
    """sigma of a shape whose mean is 1, (pairs,)."""
    return min(max(float(spread(shape)), 1.0 / WIDEST), WIDEST)
