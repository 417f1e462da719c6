"""Pairs that a run on all pairs learns best."""

from margincast.selection.rules import RULES, Rule

RULES.register("gap_large")(
    Rule("largest margin (implicit-reward gap) at the end of a run on all pairs", lambda e: e.margins, rank=4)
)
