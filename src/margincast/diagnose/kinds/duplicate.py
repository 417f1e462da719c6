"""Another pair says the same. Flagged: as close as rewordings were on persona statements, with a third of the words the
same."""

from __future__ import annotations

from margincast.diagnose.kinds import KINDS, Evidence, Scores, SuspectKind
from margincast.diagnose.neighbours import SAME_WORDS

THRESHOLD = 0.9


def _score(evidence: Evidence) -> Scores:
    near = evidence.points.nearest(evidence.pairs, opposite=False)
    flag = (near.score > THRESHOLD) & ((near.overlap >= SAME_WORDS) | (near.score >= 1.0))
    return Scores(near.score, flag, near)


KINDS.register("duplicate")(
    SuspectKind(
        "cosine to the nearest pair of the same preference; 1: the same prompt",
        THRESHOLD,
        _score,
        rank=1,
    )
)
