"""Pairs whose order the reference has wrong, the worst first."""

from margincast.selection.rules import RULES, Rule

RULES.register("reference_low")(Rule("smallest reference margin", lambda e: -e.reference, rank=3))
