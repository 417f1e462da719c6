"""Which conditions of the theorems do real embeddings meet? The hypotheses, at the values estimated from features."""

from __future__ import annotations

from margincast.records import Check
from margincast.structure import Structure
from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.theorems import printed

# The hypotheses do not depend on beta; any positive value does.
ANY_BETA = 1.0


def measured_conditions(structure: Structure) -> tuple[Check, ...]:
    """Hypotheses of Theorems 4.1 and 4.2 as printed, for the estimates in `structure`.

    Empty when the data do not have the theorems' form: no concept with two clusters, or concepts whose pairs do not all
    have the same two single-token responses.
    """
    clusters, responses = structure.clusters, structure.sharing.responses
    if clusters is None or responses is None or structure.hidden <= len(responses):
        return ()
    distribution = PreferenceDistribution(
        Q=clusters.smallest_cluster,
        d=structure.hidden,
        shared_norm=clusters.shared_norm,
        noise=clusters.noise,
        responses=responses,
    )
    gram = clusters.gram
    largest = float((gram - gram.diag().diag()).abs().max())
    geometry = (
        Check("|cos(c_k, c_m)| = 0, largest", largest, 0.0, "==", "concept vectors orthogonal to each other"),
        Check("|cos(c_k, b)| = 0, largest", float(clusters.angle_with_shared.abs().max()), 0.0, "==", "and to b"),
        Check("spread of midpoints about b = 0", clusters.midpoint_spread, 0.0, "==", "clusters symmetric about b"),
    )
    return (*geometry, *printed(distribution, ANY_BETA).conditions)
