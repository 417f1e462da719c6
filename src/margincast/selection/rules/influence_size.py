"""Pairs that move held-out margins most, up or down."""

from margincast.selection.rules import RULES, Rule

RULES.register("influence_size")(
    Rule("moves the mean margin of other held-out pairs most", lambda e: e.influence.abs(), rank=13, looks=True)
)
