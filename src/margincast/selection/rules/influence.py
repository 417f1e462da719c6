"""Pairs that add most to held-out margins in a run on all pairs (`attribute`)."""

from margincast.selection.rules import RULES, Rule

RULES.register("influence")(
    Rule("adds most to the mean margin of other held-out pairs", lambda e: e.influence, rank=12, looks=True)
)
