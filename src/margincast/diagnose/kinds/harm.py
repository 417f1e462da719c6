"""The pair is in its own concept's way. Flagged: it pushes its concept down more than up, and further from half than
chance would by `DEVIATIONS`."""

from __future__ import annotations

from margincast.diagnose.kinds import KINDS, Evidence, Scores, SuspectKind
from margincast.diagnose.learning import harm

THRESHOLD, DEVIATIONS = 0.5, 2.0


def _score(evidence: Evidence) -> Scores:
    downward, chance = harm(evidence.points)
    return Scores(downward, downward > THRESHOLD + DEVIATIONS * chance)


KINDS.register("harm")(
    SuspectKind(
        "share of the pair's push on its own concept's other pairs that is downward",
        THRESHOLD,
        _score,
        rank=4,
        flagged=f"> {THRESHOLD:g} by {DEVIATIONS:g} deviations of chance",
    )
)
