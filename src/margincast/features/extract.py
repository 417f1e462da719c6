"""What does the frozen model know about every pair? Features g, reference log-probabilities, and W0's rows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from margincast.features.cache import LAYOUT
from margincast.features.extraction import Kept, evaluating, kept_tensors
from margincast.models.adapter import adapter_trained, without_adapter
from margincast.models.digest import config_digest
from margincast.models.kind import kind_of
from margincast.models.load import LoadedModel, default_cache_dir, opened
from margincast.passes.budgets import BUDGETS, Budgets
from margincast.passes.hooks import decoder_layers
from margincast.passes.response_pass import (
    PassResult,
    check_logits,
    logit_transform,
    response_pass,
)
from margincast.passes.tokenize import Encoded, Encoding, encode
from margincast.processes import process
from margincast.records import Features, FeatureSet, PairSet
from margincast.runs.store import key_of, write_json

INNER = 6  # layers are kept: each is much like its neighbours


def _pair_lines(model: Any, batch: Sequence[Encoded], packed: bool, budgets: Budgets) -> dict[str, Tensor]:
    return _lines(model, batch, packed, (), budgets)


def _deep_lines(model: Any, batch: Sequence[Encoded], packed: bool, budgets: Budgets) -> dict[str, Tensor]:
    return _lines(model, batch, packed, inner_layers(model), budgets)


def _pooled_lines(model: Any, batch: Sequence[Encoded], packed: bool, budgets: Budgets) -> dict[str, Tensor]:
    return _lines(model, batch, packed, inner_layers(model), budgets, pooled=True)


def _lines(
    model: Any, batch: Sequence[Encoded], packed: bool, layers: Sequence[int], budgets: Budgets, pooled: bool = False
) -> dict[str, Tensor]:
    """Of a model with an adapter, features and `start` are read with it, the reference without."""
    result = response_pass(model, batch, packed, layers=layers, budgets=budgets, pooled=pooled)
    lines = {"hidden": result.hidden.cpu()}
    if result.layers is not None:
        lines["layers"] = result.layers.cpu()
    if not adapter_trained(model):
        return lines | _logps(result, "reference")
    with without_adapter(model):
        reference = response_pass(model, batch, packed, budgets=budgets)
    return lines | _logps(result, "start") | _logps(reference, "reference")


def _logps(result: PassResult, name: str) -> dict[str, Tensor]:
    # Not every device has float64.
    return {f"{name}_chosen": result.chosen.cpu().double(), f"{name}_rejected": result.rejected.cpu().double()}


PAIRS = Kept("pairs", lambda row: 1, _pair_lines)
# Training asks for pairs alone, and need not read them again.
DEEP = Kept("pairs, layers", lambda row: 1, _deep_lines, {PAIRS.kind: ("layers",)})
POOLED = Kept("pairs, layers pooled", lambda row: 1, _pooled_lines, {PAIRS.kind: ("layers",)})


def inner_layers(model: Any) -> list[int]:
    """The layers whose outputs `FeatureSet.layers` holds: `INNER` at most, evenly from the middle one to the last."""
    count = len(decoder_layers(model))
    places = torch.linspace(count / 2, count, INNER, dtype=torch.float64).round().long() - 1
    return sorted({max(place, 0) for place in places.tolist()})


def extract_features(
    model: str | Path | LoadedModel | tuple[Any, Any],
    train: PairSet,
    heldout: PairSet,
    *,
    eos: bool | None = None,
    max_length: int = 1024,
    cache_dir: str | Path | None = None,
    progress: bool = False,
    layers: bool = True,
    budgets: Budgets = BUDGETS,
) -> Features:
    """Features and reference log-probabilities of both splits under `model`: a name as `load_model` takes it, a
    `LoadedModel`, or (model, tokenizer) in memory, which are left as they are.

    A model with an adapter, peft's or transformers' own, is read with it; its reference is the model without. Where the
    two differ the features say so (`FeatureSet.start_chosen`), and margins of forecasts and runs start from there.

    Cached under `cache_dir`: a second call reads them, an interrupted one is continued, a damaged file is made again.
    `eos` and `max_length` as in `passes.tokenize.encode`. `layers`: keep what inner layers put out too, which forecasts
    of training all weights need that are from features.

    Warns, with the reason, when the model cannot be given packed batches and gets padded ones.

    Raises `InputError` for pairs that the model cannot read, as `encode` does, for tokens that its embedding lacks and
    for numbers that are not finite; `StatedFailure` when several processes extract and do not see the same cache.
    """
    cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir)
    loaded = opened(model, cache_dir)
    both = PairSet(train.pairs + heldout.pairs)
    encoding = encode(both, loaded.tokenizer, eos=eos, max_length=max_length, context=loaded.context)
    for notice in encoding.notices:
        warnings.warn(notice, stacklevel=2)
    return features_of(
        loaded, encoding, train, heldout, cache_dir=cache_dir, progress=progress, layers=layers, budgets=budgets
    )


def features_of(
    loaded: LoadedModel,
    encoding: Encoding,
    train: PairSet,
    heldout: PairSet,
    *,
    cache_dir: Path,
    progress: bool = False,
    copy_to: Path | None = None,
    say: Callable[[str], None] = warnings.warn,
    layers: bool = False,
    budgets: Budgets = BUDGETS,
) -> Features:
    """`extract_features` for pairs that are already encoded.

    copy_to: receives the features and their manifest
    say: is told once why batches are padded, where they are
    layers: whether to keep what inner layers put out, too;  budgets: of passes
    """
    kept = (DEEP if encoding.single_token else POOLED) if layers else PAIRS
    tensors = kept_tensors(
        loaded, encoding, train, heldout, kept, cache_dir=cache_dir, progress=progress, copy_to=copy_to, say=say,
        budgets=budgets,
    )  # fmt: skip
    rows = (*encoding.select(train).rows, *encoding.select(heldout).rows)
    return _assemble(loaded, encoding, rows, train, heldout, tensors, known_logits(loaded, rows, cache_dir))


def known_logits(loaded: LoadedModel, rows: Sequence[Encoded], cache_dir: Path) -> str:
    """`check_logits` of the model, whose answer is kept beside its features."""
    key = key_of([loaded.hash, config_digest(loaded.model), LAYOUT])[:32]
    path = cache_dir / "checks" / f"logits-{key}.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["logits"])
    except (OSError, ValueError, KeyError, TypeError):
        with evaluating(loaded.model):
            found = check_logits(loaded.model, rows)
    if process() == 0:
        write_json(path, {"logits": found})
    return found


def _assemble(
    loaded: LoadedModel,
    encoding: Encoding,
    rows: Sequence[Encoded],
    train: PairSet,
    heldout: PairSet,
    tensors: dict[str, Tensor],
    logits: str,
) -> Features:
    def split(pairs: PairSet, start: int) -> FeatureSet:
        part = slice(start, start + len(pairs))
        return FeatureSet(
            pairs=pairs,
            hidden=tensors["hidden"][part],
            layers=tensors["layers"][part] if "layers" in tensors else None,
            chosen_ids=tuple(row.chosen for row in rows[part]),
            rejected_ids=tuple(row.rejected for row in rows[part]),
            reference_chosen=tensors["reference_chosen"][part],
            reference_rejected=tensors["reference_rejected"][part],
            start_chosen=tensors["start_chosen"][part] if "start_chosen" in tensors else None,
            start_rejected=tensors["start_rejected"][part] if "start_rejected" in tensors else None,
        )

    single = encoding.single_token
    tokens = torch.tensor(sorted({ids[0] for row in rows for ids in (row.chosen, row.rejected)} if single else set()))
    tokens = tokens.long()
    head = loaded.model.get_output_embeddings()
    where = tokens.to(loaded.model.device)
    return Features(
        train=split(train, 0),
        heldout=split(heldout, len(train)),
        tokens=tokens,
        unembedding=head.weight.detach()[where].cpu(),
        bias=None if getattr(head, "bias", None) is None else head.bias.detach()[where].cpu(),
        model=loaded.name,
        model_hash=loaded.hash,
        logits=logits,
        scale=logit_transform(loaded.model)[0],
        device=loaded.device,
        kind=kind_of(loaded.model),
    )
