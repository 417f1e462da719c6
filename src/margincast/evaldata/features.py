"""What does a frozen model know about eval data? The features g that predict every token, and its whole unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.evaldata.measure import Positions, positions_of, states_of
from margincast.evaldata.read import EvalData
from margincast.evaldata.tokens import EncodedEval, Scored, encode_eval
from margincast.models.adapter import adapter_trained
from margincast.models.checks import refuse_unknown_ids
from margincast.models.load import LoadedModel, default_cache_dir, opened
from margincast.passes.response_pass import logit_transform, packing_problem
from margincast.passes.tokenize import Encoded
from margincast.records import PairSet


@dataclass(frozen=True, repr=False)
class EvalPart:
    """The texts of one set, or the responses of its pairs.

    hidden: (P, hidden), already times the factor that the model puts on its logits
    positions: which tokens they predict, and of which text, or of which response: 2i the chosen one of pair i
    pairs: whose responses they are, if they are
    """

    name: str
    hidden: Tensor
    positions: Positions
    pairs: PairSet | None = None


@dataclass(frozen=True, repr=False)
class EvalFeatures:
    """weight: (V, hidden), the unembedding;  bias: (V,) or None, times the model's factor"""

    parts: tuple[EvalPart, ...]
    weight: Tensor
    bias: Tensor | None

    def __repr__(self) -> str:
        return f"EvalFeatures({sum(len(part.hidden) for part in self.parts)} positions)"

    def to(self, device: torch.device, dtype: torch.dtype) -> EvalFeatures:
        """The same on `device`, in `dtype`."""
        parts = tuple(replace(part, hidden=part.hidden.to(device, dtype)) for part in self.parts)
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return EvalFeatures(parts, self.weight.to(device, dtype), bias)


def extract_eval_features(
    model: str | Path | LoadedModel | tuple[Any, Any],
    data: EvalData,
    *,
    eos: bool | None = None,
    max_length: int = 1024,
    cache_dir: str | Path | None = None,
) -> EvalFeatures:
    """Features of `data` under `model`, for forecasts of training the unembedding. Arguments of `extract_features`.

    Raises `InputError` for data that the model cannot read, and for a model with a trained adapter.
    """
    loaded = opened(model, default_cache_dir() if cache_dir is None else Path(cache_dir))
    encoded = encode_eval(data, loaded.tokenizer, eos=eos, max_length=max_length, context=loaded.context)
    return eval_features_of(loaded, encoded)


@torch.no_grad()
def eval_features_of(loaded: LoadedModel, data: EncodedEval) -> EvalFeatures:
    """`extract_eval_features` of data that are in tokens."""
    if adapter_trained(loaded.model):
        raise InputError(
            f"{loaded.name} comes with a trained adapter, and what else changes is foreseen of a model that is its own "
            "reference; merge it: --merge_adapter, load_model(..., merge_adapter=True)"
        )
    refuse_unknown_ids(loaded, data.sequences)
    scale, _ = logit_transform(loaded.model)
    parts = []
    for each in data.sets:
        if each.texts:
            parts.append(_part(loaded.model, each.name, each.texts, scale))
        if each.pairs is not None:
            sides = [side for row in each.pairs.rows for side in responses(row)]
            parts.append(replace(_part(loaded.model, each.name, sides, scale), pairs=each.pairs.pairs))
    head = loaded.model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    return EvalFeatures(tuple(parts), head.weight.detach().cpu(), None if bias is None else scale * bias.detach().cpu())


def responses(row: Encoded) -> tuple[Scored, Scored]:
    """The chosen and the rejected response as texts that begin with the prompt."""
    start = len(row.prompt)
    return Scored(row.prompt + row.chosen, start), Scored(row.prompt + row.rejected, start)


def _part(model: Any, name: str, texts: Sequence[Scored], scale: float) -> EvalPart:
    was_training = model.training
    model.eval()
    # Any pair tells whether packs are right: a text against its own beginning.
    sample = [Encoded(text.ids[: text.start], text.targets, text.targets[:1]) for text in texts[:3]]
    hidden = states_of(model, texts, packing_problem(model, sample) is None).cpu()
    model.train(was_training)
    return EvalPart(name, hidden if scale == 1.0 else hidden * scale, positions_of(texts))
