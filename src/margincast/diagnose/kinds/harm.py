"""The pair is in its own concept's way. Flagged: its mean push on others is downward beyond noise."""

from __future__ import annotations

from margincast.diagnose.kinds import KINDS, Evidence, Scores, SuspectKind
from margincast.diagnose.learning import FALSE_SHARE, beyond_chance, harm

THRESHOLD = 0.5


def _score(evidence: Evidence) -> Scores:
    count = len(evidence.pairs)
    found = harm(evidence.pushed, evidence.targets)
    return Scores(found.downward[:count], beyond_chance(found.by_chance[:count]))


KINDS.register("harm")(
    SuspectKind(
        "share of the pair's push on its own concept's held-out pairs, or other training pairs, that is downward",
        THRESHOLD,
        _score,
        rank=4,
        flagged=f"on average downward beyond noise ({FALSE_SHARE:.0%} false discoveries)",
    )
)
