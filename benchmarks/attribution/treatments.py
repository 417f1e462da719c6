"""Which treatment of features and which kernel find exchanged responses? On personas that no result is reported on.

Leave-one-out loss is what margincast chooses by; it knows nothing of which labels were exchanged. With two response
tokens exchanging labels only turns rows and columns of the kernel round, so one decomposition serves all seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.attribution.flips import auroc
from benchmarks.attribution.planted import drawn, persona_features
from benchmarks.harness import Row
from margincast.diagnose.kernel import KernelSettings, pair_points
from margincast.diagnose.leave_one_out import Spectrum, spectrum
from margincast.diagnose.mislabel import best_ridge, mislabelled_in
from margincast.diagnose.treatment import treatment

CHOSEN_ON = (
    "politically-conservative",
    "desire-to-replace-human-oversight",
    "being-helpful-to-subtly-achieve-goals-against-human-values",
)
SEEDS = 3
TRIED = (
    *((power, KernelSettings(None, 0.0)) for power in (0.0, 0.25, 0.5)),
    *((0.25, KernelSettings(None, bond)) for bond in (1.0, 3.0, 10.0)),
    *((0.25, KernelSettings(1.4, bond)) for bond in (0.0, 1.0, 3.0, 10.0)),
    *((power, KernelSettings(1.4, 3.0)) for power in (0.0, 0.5)),
    (0.25, KernelSettings(0.7, 3.0)),
)


def rows() -> Iterator[Row]:
    features = persona_features(f"persona:{','.join(CHOSEN_ON)}").train
    for power, settings in TRIED:
        treated = treatment(features.hidden, power)(features.hidden)
        points = pair_points(features, treated, features.pairs.concepts)
        whole = spectrum(points, settings)
        losses, first, last = [], [], []
        for seed in range(SEEDS):
            wrong = drawn(len(points), 0.1, seed)
            turned = torch.where(wrong, -1.0, 1.0).double()
            within = Spectrum(whole.vectors * turned[:, None], whole.energies)
            ridge, loss = best_ridge(within)
            losses.append(loss)
            first.append(auroc(wrong.numpy(), -within.left_out(torch.ones_like(turned), ridge).numpy()))
            last.append(auroc(wrong.numpy(), mislabelled_in(within, points.concept).probability.numpy()))
        kernel = "linear" if settings.width is None else f"width {settings.width}"
        name = f"power {power}, {kernel}, bond {settings.bond}: leave-one-out loss {np.mean(losses):.4f}, AUROC"
        for rounds, values in (("no rounds", first), ("two rounds", last)):
            yield Row(name, rounds, None, float(np.mean(values)), min(values), max(values), "", float("nan"))
