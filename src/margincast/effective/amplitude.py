"""How large do margins get? A power law of how far the run goes, how large its batches are, how clear its labels.

In nats, that is margins over beta, the mean margin without the shared offset is about

    A = scale L^length B^batch rho^signal

L: path length, the sum of learning rates. AdamW's steps do not depend on the size of the gradient nor on beta, so that
runs of the same L get about as far. B: pairs of a batch; the label balance of small batches fills AdamW's second moment
and slows everything else down. rho: the part of the centred signed features that points one way,

    rho = sum_{i != j} K_ij / (N (N - 1)) / mean_i K_ii,

without bias the squared mean of delta (x) g^ against its mean square; flipped labels and many concepts lower it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from margincast.dynamics.state import TokenSpace

SMALLEST = 1e-4  # rho of labels that say nothing is 0 in the mean, and below it half the time


@dataclass(frozen=True)
class AmplitudeLaw:
    """The exponents of A, and how far runs are from it: `spread` is the standard deviation of log A."""

    scale: float
    length: float
    batch: float
    signal: float
    spread: float

    def at(self, length: float, batch: int, signal: float) -> float:
        """A in nats. length: path length in units of `time.UNIT`."""
        value = self.scale * length**self.length * float(batch) ** self.batch * max(signal, SMALLEST) ** self.signal
        return float(value)


def signal_share(train: TokenSpace) -> float:
    """rho of the training pairs, from their features in one pass: no kernel is made."""
    centred = train.features.double() - train.features.double().mean(0)
    space = TokenSpace(centred, train.chosen, train.rejected, train.beta, train.tokens)
    total = float(space.pull(torch.ones(len(space), dtype=torch.float64)).square().sum())
    own = float(2.0 * centred.square().sum())
    count = len(space)
    return (total - own) / (count * (count - 1)) / (own / count)


def fit_amplitude(
    lengths: Sequence[float], batches: Sequence[int], signals: Sequence[float], amplitudes: Sequence[float],
    prior: AmplitudeLaw, runs: float,
) -> AmplitudeLaw:  # fmt: skip
    """The law nearest to runs of known A, its exponents held near those of `prior` with the weight of `runs` runs."""
    columns = [torch.tensor(values, dtype=torch.float64) for values in (lengths, batches, signals, amplitudes)]
    length, batch, signal, log_a = (column.clamp_min(SMALLEST).log() for column in columns)
    design = torch.stack([torch.ones_like(length), length, batch, signal], dim=1)
    guess = torch.tensor([0.0, prior.length, prior.batch, prior.signal], dtype=torch.float64)
    hold = torch.diag(torch.tensor([0.0, runs, runs, runs], dtype=torch.float64))
    # Exponents act on deviations from the mean run: the scale is free, and absorbs none of the prior's pull.
    design[:, 1:] -= design[:, 1:].mean(0)
    solution = torch.linalg.solve(design.T @ design + hold, design.T @ log_a + hold @ guess)
    centre = torch.stack([length.mean(), batch.mean(), signal.mean()])
    residual = log_a - design @ solution
    spread = float(residual.square().sum().div(max(1, len(log_a) - 2)).sqrt()) if len(log_a) > 2 else prior.spread
    scale = float((solution[0] - (solution[1:] * centre).sum()).exp())
    of_length, of_batch, of_signal = (float(value) for value in solution[1:])
    return AmplitudeLaw(scale, of_length, of_batch, of_signal, spread)
