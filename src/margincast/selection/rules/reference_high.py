"""Pairs whose order the reference knows already, those it is surest of first (against hard pairs: arXiv 2502.09650)."""

from margincast.selection.rules import RULES, Rule

RULES.register("reference_high")(
    Rule("largest reference margin, log pi_ref(chosen) - log pi_ref(rejected)", lambda e: e.reference, rank=1)
)
