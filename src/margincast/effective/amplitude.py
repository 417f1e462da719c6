"""How large do margins get? A power law of how far the run goes, how large its batches are, how clear its labels.

In nats, that is margins over beta, the mean margin without offsets is about

    A = scale L^length B^batch rho^signal        (times `adapter` for LoRA)

L: path length, the sum of learning rates. AdamW's steps do not depend on the size of the gradient nor on beta, so that
runs of the same L get about as far. B: pairs of a batch; the label balance of small batches fills AdamW's second moment
and slows everything else down. rho: the part of the centred signed features that points one way,

    rho = sum_{i != j} K_ij / (N (N - 1)) / mean_i K_ii,

without bias the squared mean of delta (x) g^ against its mean square; flipped labels and many concepts lower it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from margincast.dynamics.state import TokenSpace

SMALLEST = 1e-3  # rho of labels that say nothing is 0 in the mean, and below it half the time


@dataclass(frozen=True)
class AmplitudeLaw:
    """The exponents of A."""

    scale: float
    length: float
    batch: float
    signal: float
    adapter: float

    def at(self, length: float, batch: int, signal: float, lora: bool) -> float:
        """A in nats. length: path length in units of `time.UNIT`"""
        value = self.scale * length**self.length * float(batch) ** self.batch * max(signal, SMALLEST) ** self.signal
        return float(value * (self.adapter if lora else 1.0))


def signal_share(train: TokenSpace) -> float:
    """rho of the training pairs, from their features in one pass: no kernel is made."""
    centred = train.features.double() - train.features.double().mean(0)
    space = TokenSpace(centred, train.chosen, train.rejected, train.beta, train.tokens)
    total = float(space.pull(torch.ones(len(space), dtype=torch.float64)).square().sum())
    own = float(2.0 * centred.square().sum())
    count = len(space)
    return (total - own) / (count * (count - 1)) / (own / count)
