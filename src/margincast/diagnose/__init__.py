"""Which training pairs are wrong, double, contradictory, beyond learning or in the way; who helps whom; and export."""

from margincast.diagnose.diagnosis import Diagnosis, clean, diagnose_run
from margincast.diagnose.export import (
    Change,
    apply_changes,
    plan_changes,
    write_cleaned,
    write_pairs,
    write_without_worst,
)
from margincast.diagnose.interaction import Interaction, interaction
from margincast.diagnose.kinds import KINDS, SuspectKind
from margincast.diagnose.suspects import Suspects, find_issues

__all__ = [
    "KINDS",
    "Change",
    "Diagnosis",
    "Interaction",
    "SuspectKind",
    "Suspects",
    "apply_changes",
    "clean",
    "diagnose_run",
    "find_issues",
    "interaction",
    "plan_changes",
    "write_cleaned",
    "write_pairs",
    "write_without_worst",
]
