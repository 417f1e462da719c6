"""As many pairs of every concept or topic as there are."""

from margincast.selection.rules import RULES, Rule, in_turns

RULES.register("balanced")(Rule("concepts (or topics) in turns", lambda e: in_turns(e.concept, e.draw), rank=8))
