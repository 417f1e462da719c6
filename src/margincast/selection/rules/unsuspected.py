"""Pairs that `attribute` does not flag as mislabelled, at random: the easiest of them are no better than others."""

from torch import Tensor

from margincast.diagnose.kinds import kinds
from margincast.selection.evidence import Evidence
from margincast.selection.rules import RULES, Rule


def _value(evidence: Evidence) -> Tensor:
    """0 of a pair that is not suspect, else minus how likely its label is wrong."""
    wrong = evidence.left_out.probability.double()
    return -wrong.where(wrong > kinds()["mislabel"].threshold, 0.0)


RULES.register("unsuspected")(Rule("likely wrong labels go first, the others at random", _value, rank=11))
