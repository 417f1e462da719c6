"""SimPO: a target margin, without a reference."""

from __future__ import annotations

from margincast.recipe.loss import Loss, check_smoothing, tilted
from margincast.recipe.losses import LOSSES


@LOSSES.register("simpo")
def simpo(simpo_gamma: float = 0.5, label_smoothing: float = 0.0) -> Loss:
    """-log sigma(r - gamma) of the margin without reference, with cDPO's smoothing as in TRL's CPOTrainer."""
    check_smoothing("simpo", label_smoothing)
    parameters = {"simpo_gamma": simpo_gamma, "label_smoothing": label_smoothing}
    return tilted("simpo", label_smoothing, parameters, target=simpo_gamma, reference_free=True)
