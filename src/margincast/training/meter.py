"""What does a real run change beside its margins? Measured at its recorded steps, against the model at step 0.

Nothing here touches the run: no gradient is kept, no random number drawn, dropout is off, and the model is put back
into the mode that it was in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from margincast.effects import Effects, HeldoutResponses, PairEffects, TextEffects
from margincast.errors import InputError
from margincast.evaldata.answers import answered, effects_of_answers, greedy_answers
from margincast.evaldata.measure import (
    KeptHead,
    Positions,
    first_loss,
    kept_head,
    of_head,
    of_model,
    positions_of,
    shift,
    states_of,
)
from margincast.evaldata.tokens import EncodedEval, EncodedSet
from margincast.passes.evaluate import Evaluator
from margincast.passes.hooks import unwrapped
from margincast.passes.response_pass import logit_transform
from margincast.passes.tokenize import Encoded
from margincast.processes import process
from margincast.recipe.losses import Loss, get_loss
from margincast.runs.store import write_tensors
from margincast.training.step import counted_lengths

FIRST = "first.safetensors"  # in the folder of the run's state: the hidden states and the unembedding of step 0
Measured = dict[str, Tensor]


@dataclass
class EffectMeter:
    """Measures a run on `data` at every recorded step.

    heldout: rows of the run's own held-out pairs, in its order;  prompts: to be answered at every recorded step
    packed: whether the model can be given packed batches;  frozen_backbone: whether the unembedding trains alone
    """

    data: EncodedEval
    tokenizer: Any
    heldout: Sequence[Encoded]
    prompts: Sequence[tuple[int, ...]]
    packed: bool
    frozen_backbone: bool
    _first: Measured = field(default_factory=dict)

    def begin(self, model: Any) -> None:
        """Remember what `model`, that of step 0, says of the texts."""
        if not self._texts or process() != 0:
            return
        head = kept_head(model)
        kept = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
        was_training = model.training
        model.eval()
        for number, (each, positions) in enumerate(zip(self._texts, self._positions, strict=True)):
            hidden = states_of(unwrapped(model), each.texts, self.packed)
            kept[f"hidden{number}"] = hidden
            kept[f"loss{number}"] = first_loss(of_head(head, hidden), positions.target, len(head.weight))
        model.train(was_training)
        self._first = kept

    def keep(self, folder: Path) -> None:
        """Leave it in `folder`, for a run that goes on where its first model is not at hand."""
        if self._texts:
            write_tensors(folder / FIRST, self._first)

    def read(self, folder: Path) -> None:
        """Read it again. Raises `InputError` where it is not there, or damaged."""
        if not self._texts:
            return
        try:
            # Copied: products of tensors that lie elsewhere than at round addresses differ in their last bits.
            self._first = {name: tensor.clone() for name, tensor in load_file(folder / FIRST).items()}
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"training resumes and {folder / FIRST} cannot be read, so what the eval data are compared "
                "with is not known; resume with the folder that the run began with"
            ) from error

    def measure(self, model: Any) -> Measured:
        """What the model says now, by name. Every process must call it; the first has all of it."""
        found: Measured = {}
        was_training = model.training
        for number, evaluate in enumerate(self._evaluators):
            found[f"chosen{number}"], found[f"rejected{number}"] = evaluate(model)
        if process() == 0:
            model.eval()
            for number in range(len(self._texts)):
                found |= self._measure_texts(unwrapped(model), number)
            if self.prompts:
                found["answers"] = greedy_answers(model, self.tokenizer, self.prompts)
            model.train(was_training)
        return found

    @property
    def names(self) -> list[str]:
        """Of what `measure` gives in the first process."""
        texts = [f"{name}{number}" for number in range(len(self._texts)) for name in ("kl", "loss", "changed")]
        pairs = [f"{name}{number}" for number in range(len(self._pairs)) for name in ("chosen", "rejected")]
        return [*texts, *pairs, *(["answers"] if self.prompts else [])]

    def effects(self, steps: Sequence[Mapping[str, Tensor]], beta: float, loss: Loss) -> Effects:
        """steps: what was measured, and `chosen` of held-out pairs, at every recorded step"""
        start = {} if loss.reference_free else steps[0]
        texts = tuple(
            TextEffects(
                each.name, positions.counts, *(_stacked(steps, f"{name}{k}") for name in ("kl", "loss", "changed"))
            )
            for k, (each, positions) in enumerate(zip(self._texts, self._positions, strict=True))
        )
        pairs = []
        for k, each in enumerate(self._pairs):
            assert each.pairs is not None
            sides = [
                (_stacked(steps, f"{name}{k}") - start.get(f"{name}{k}", 0.0)) / length
                for name, length in zip(("chosen", "rejected"), counted_lengths(each.pairs.rows, loss), strict=True)
            ]
            pairs.append(PairEffects(each.name, each.pairs.pairs, beta * (sides[0] - sides[1])))
        answers = None
        if self.prompts:
            answers = effects_of_answers([each["answers"] for each in steps], self.tokenizer.eos_token_id)
        lengths = torch.tensor([[len(row.chosen), len(row.rejected)] for row in self.heldout]).view(-1, 2)
        chosen = steps[0]["chosen"][len(steps[0]["chosen"]) - len(self.heldout) :]
        return Effects(texts, tuple(pairs), HeldoutResponses(lengths, chosen.double(), loss.averaged), answers)

    def expected(self) -> Effects:
        """Effects of a step at which nothing has changed: what names there will be."""
        blank: Measured = {"chosen": torch.zeros(len(self.heldout)), "answers": torch.zeros(len(self.prompts), 1)}
        for k, positions in enumerate(self._positions):
            blank |= {f"{name}{k}": torch.zeros(positions.texts) for name in ("kl", "loss", "changed")}
        for k, each in enumerate(self._pairs):
            blank |= {f"{name}{k}": torch.zeros(len(each.pairs.rows)) for name in ("chosen", "rejected")}  # type: ignore[union-attr]
        return self.effects([blank], 1.0, get_loss("sigmoid"))

    @cached_property
    def _texts(self) -> list[EncodedSet]:
        return [each for each in self.data.sets if each.texts]

    @cached_property
    def _pairs(self) -> list[EncodedSet]:
        return [each for each in self.data.sets if each.pairs is not None]

    @cached_property
    def _positions(self) -> list[Positions]:
        return [positions_of(each.texts) for each in self._texts]

    @cached_property
    def _evaluators(self) -> list[Evaluator]:
        rows = [each.pairs.rows for each in self._pairs if each.pairs is not None]
        return [Evaluator(each, self.packed, self.frozen_backbone) for each in rows]

    def _measure_texts(self, model: Any, number: int) -> Measured:
        positions, device = self._positions[number], next(model.parameters()).device
        first = {name: tensor.to(device) for name, tensor in self._first.items()}
        head = KeptHead(first["weight"], first.get("bias"), *logit_transform(model))
        before = first[f"hidden{number}"]
        now = before if self.frozen_backbone else states_of(model, self._texts[number].texts, self.packed)
        found = shift(of_head(head, before), of_model(model, now), positions.target, len(head.weight))
        loss = first[f"loss{number}"] - found.gain
        values = {"kl": found.kl, "loss": loss, "changed": found.changed}
        return {f"{name}{number}": positions.per_text(each) for name, each in values.items()}


def _stacked(steps: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    return torch.stack([each[name] for each in steps])


def meter_of(
    data: EncodedEval,
    tokenizer: Any,
    heldout: Sequence[Encoded],
    *,
    budget: int,
    records: int,
    packed: bool,
    frozen_backbone: bool,
) -> EffectMeter:
    """budget: tokens of greedy answers over `records` recorded steps, to the prompts of `data`, or, where it has none
    and responses have many tokens, to those of held-out pairs"""
    many = any(len(row.chosen) > 1 or len(row.rejected) > 1 for row in heldout)
    prompts = data.prompts or ([*dict.fromkeys(row.prompt for row in heldout)] if many else [])
    return EffectMeter(
        data, tokenizer, heldout, answered(prompts, budget, records, data.context), packed, frozen_backbone
    )
