"""Of pairs that say the same, one: white space and case aside."""

from collections.abc import Hashable

import torch
from torch import Tensor

from margincast.selection.evidence import Evidence
from margincast.selection.rules import RULES, Rule
from margincast.splitting import prompt_key


def _value(evidence: Evidence) -> Tensor:
    """0 of a first pair, -1 of one that repeats it."""
    met: set[Hashable] = set()
    values = []
    for pair in evidence.pairs:
        key = (prompt_key(pair.prompt), prompt_key(pair.chosen), prompt_key(pair.rejected))
        values.append(-1.0 if key in met else 0.0)
        met.add(key)
    return torch.tensor(values, dtype=torch.float64)


RULES.register("distinct")(Rule("repeated pairs go first, the others at random", _value, rank=9))
