"""Pairs whose responses are about as long, so that length tells nothing of which one is preferred."""

from torch import Tensor

from margincast.selection.evidence import Evidence
from margincast.selection.rules import RULES, Rule


def _value(evidence: Evidence) -> Tensor:
    lengths = evidence.lengths.clamp(min=1).log()
    return -(lengths[:, 0] - lengths[:, 1]).abs()


RULES.register("length_match")(Rule("responses nearest in length, by the ratio of their tokens", _value, rank=6))
