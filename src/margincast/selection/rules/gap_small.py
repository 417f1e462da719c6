"""Pairs that a run on all pairs leaves hardest (arXiv 2508.04149): the smallest implicit-reward gap at its end."""

from margincast.selection.rules import RULES, Rule

RULES.register("gap_small")(
    Rule("smallest margin (implicit-reward gap) at the end of a run on all pairs", lambda e: -e.margins, rank=5)
)
