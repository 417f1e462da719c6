"""What can be promised about the margins of *these* features, trained and held out, at given times?

The best of what is affordable: the tube (any features) and, where N^2 fits, the propagated envelopes. Both are true of
the exact gradient flow, so their intersection is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from margincast.frozen.engine.state import TokenSpace
from margincast.theory.envelopes import Bracket, propagate
from margincast.theory.tube import flow_tube

_LARGEST_KERNEL = 1000  # pairs; beyond, N^2 per round costs more than a tighter tube


@dataclass(frozen=True)
class Certificate:
    """Brackets that contain every margin of the exact flow. tube_steps: integration steps the tube took."""

    train: Bracket
    heldout: Bracket
    tube_steps: int


def certify(
    train: TokenSpace, heldout: TokenSpace, times: Sequence[float], tau: float = 1.0, share: float = 0.05
) -> Certificate:
    """Brackets of the training and held-out margins at `times` (ascending from 0) under gradient flow from dW = 0.

    share: see `flow_tube`; smaller is tighter and costs more steps
    """
    tube = flow_tube(train, times, tau, share)
    ours, theirs = tube.bracket(train), tube.bracket(heldout)
    if len(train) <= _LARGEST_KERNEL and len(heldout) <= _LARGEST_KERNEL:
        envelope = propagate(train, heldout, times, tau)
        ours, theirs = ours.intersect(envelope.train), theirs.intersect(envelope.heldout)
    return Certificate(ours, theirs, tube.steps)
