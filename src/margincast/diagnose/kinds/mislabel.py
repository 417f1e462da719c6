"""Chosen and rejected are exchanged, as all other pairs have it. Flagged: more likely wrong than right."""

from __future__ import annotations

from margincast.diagnose.kinds import KINDS, Evidence, Scores, SuspectKind

THRESHOLD = 0.5


def _score(evidence: Evidence) -> Scores:
    probability = evidence.left_out.probability
    return Scores(probability, probability > THRESHOLD)


KINDS.register("mislabel")(
    SuspectKind(
        "probability that chosen and rejected are exchanged, foreseen from all other pairs",
        THRESHOLD,
        _score,
        flippable=True,
        rank=0,
    )
)
