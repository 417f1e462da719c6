"""The pair is not learned though it is trained on. Flagged: never, by the time at which generalisation is best."""

from __future__ import annotations

from margincast.diagnose.kinds import KINDS, Evidence, Scores, SuspectKind
from margincast.diagnose.learning import unlearnable

THRESHOLD = 1.0


def _score(evidence: Evidence) -> Scores:
    share = unlearnable(evidence.left_out.spectrum, evidence.left_out.ridge)
    return Scores(share, share >= THRESHOLD)


KINDS.register("unlearnable")(
    SuspectKind(
        "share of a squared-loss flow on these pairs, not of the run, in which the pair has no positive margin",
        THRESHOLD,
        _score,
        rank=3,
        flagged=f">= {THRESHOLD:g}",
    )
)
