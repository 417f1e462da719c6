"""Pairs that the reference finds neither easy nor hard."""

from torch import Tensor

from margincast.selection.evidence import Evidence
from margincast.selection.rules import RULES, Rule


def _value(evidence: Evidence) -> Tensor:
    return -(evidence.reference - evidence.reference.median()).abs()


RULES.register("reference_middle")(Rule("reference margin nearest to the median", _value, rank=2))
