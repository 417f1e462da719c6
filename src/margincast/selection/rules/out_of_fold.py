"""Pairs that all other pairs foresee as labelled: what is likely mislabelled goes first (`attribute` lists it)."""

from margincast.selection.rules import RULES, Rule

RULES.register("out_of_fold")(
    Rule("largest left-out margin: what the other pairs contradict goes first", lambda e: e.left_out.margins, rank=10)
)
