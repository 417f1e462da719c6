"""A random part, the yardstick of all rules."""

from margincast.selection.rules import RULES, Rule

RULES.register("random")(Rule("drawn at random", lambda evidence: evidence.draw, rank=0))
