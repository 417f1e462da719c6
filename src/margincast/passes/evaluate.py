"""What are the margins of the recorded pairs right now? One evaluation, cheap where the backbone is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from margincast.passes.budgets import BUDGETS, Budgets
from margincast.passes.plan import agreed_packs, where_it_fits
from margincast.passes.response_pass import Rows, hidden_states, response_logps
from margincast.passes.tokenize import Encoded
from margincast.processes import everyone, process, processes


@dataclass
class Evaluator:
    """Log-probabilities of the responses of `rows`, always in the same packs, so that an unchanged model gives exactly
    the same numbers again and margins at step 0 are exactly 0.

    With `frozen_backbone` the hidden states are computed once and kept: only the unembedding is applied again.
    Processes share the packs; each makes the same number of passes, as a model laid over processes needs. A pack that
    memory does not suffice for is evaluated in halves.
    """

    rows: Sequence[Encoded]
    packed: bool
    frozen_backbone: bool
    budgets: Budgets = BUDGETS
    _kept: dict[tuple[int, ...], tuple[Tensor, Tensor, Rows]] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, model: Any) -> tuple[Tensor, Tensor]:
        """(chosen, rejected) summed log-probabilities, (pairs,) float64 each, in the order of `rows`."""
        was_training = model.training
        model.eval()
        chosen = torch.zeros(len(self.rows), dtype=torch.float64)
        rejected = torch.zeros(len(self.rows), dtype=torch.float64)
        plan = agreed_packs(model, [row.inputs for row in self.rows], self.packed, self.budgets)

        def compute(members: list[int]) -> tuple[Tensor, Tensor]:
            hidden, position, rows = self._states(model, members)
            return response_logps(model, hidden, position, rows, len(members), budgets=self.budgets)

        for start in range(0, len(plan), processes()):
            number = min(start + process(), len(plan) - 1)
            fitting = where_it_fits(model, plan[number], lambda index: self.rows[index].inputs, self.packed, compute)
            for members, (chosen_part, rejected_part) in fitting:
                chosen[members] = chosen_part.cpu().double()
                rejected[members] = rejected_part.cpu().double()
        model.train(was_training)
        everything = everyone((chosen, rejected))
        for number, members in enumerate(plan):
            chosen[members], rejected[members] = (side[members] for side in everything[number % processes()])
        return chosen, rejected

    def _states(self, model: Any, members: Sequence[int]) -> tuple[Tensor, Tensor, Rows]:
        key = tuple(members)
        if key in self._kept:
            return self._kept[key]
        everything, rows = hidden_states(model, [self.rows[index] for index in members], self.packed)
        used, position = torch.unique(rows.row, return_inverse=True)
        states = (everything[used], position, rows)
        if self.frozen_backbone:
            self._kept[key] = states
        return states
