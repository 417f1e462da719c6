"""Which pairs to train on? Rules that people argue about, each judged by the forecast of the run on what it keeps."""

from margincast.selection.choosing import Choice, Selection, select
from margincast.selection.rules import RULES, Rule

__all__ = ["RULES", "Choice", "Rule", "Selection", "select"]
