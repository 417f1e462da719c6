"""What does the frozen model know about every pair? Features g, reference log-probabilities, and W0's rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from margincast.features.cache import CacheKey, FeatureCache, fill
from margincast.features.packing import plan_packs
from margincast.features.passes import check_logits, logit_transform, packing_problem, response_pass
from margincast.features.tokenize import Encoded, Encoding, encode
from margincast.models.load import LoadedModel, default_cache_dir, load_model
from margincast.records import Features, FeatureSet, PairSet

# Distinct tokens per forward pass. On 2 cores SmolLM2 runs as fast at 256 as at 512 and slower beyond, where the
# quadratic mask begins to cost.
PACK_TOKENS = 512
PART_SECONDS = 20.0


def extract_features(
    model: str | LoadedModel,
    train: PairSet,
    heldout: PairSet,
    *,
    eos: bool | None = None,
    max_length: int = 1024,
    cache_dir: Path | None = None,
    progress: bool = False,
) -> Features:
    """Features and reference log-probabilities of both splits under `model` (a name or a `LoadedModel`).

    Cached under `cache_dir`: a second call reads them, an interrupted one is continued, a damaged file is made again.
    `eos` and `max_length` as in `features.tokenize.encode`.

    Raises `InputError` for pairs that the model cannot read, as `encode` does.
    """
    cache_dir = cache_dir or default_cache_dir()
    loaded = load_model(model, cache_dir=cache_dir) if isinstance(model, str) else model
    both = PairSet(train.pairs + heldout.pairs)
    encoding = encode(both, loaded.tokenizer, eos=eos, max_length=max_length, context=loaded.context)
    return features_of(loaded, encoding, train, heldout, cache_dir=cache_dir, progress=progress)


def features_of(
    loaded: LoadedModel,
    encoding: Encoding,
    train: PairSet,
    heldout: PairSet,
    *,
    cache_dir: Path,
    progress: bool = False,
    copy_to: Path | None = None,
) -> Features:
    """`extract_features` for pairs that are already encoded; `copy_to` receives the features and their manifest."""
    rows = (*encoding.select(train).rows, *encoding.select(heldout).rows)
    logits = check_logits(loaded.model, rows)
    packed = packing_problem(loaded.model, rows) is None
    key = CacheKey(
        model_hash=loaded.hash,
        dtype=str(next(loaded.model.parameters()).dtype),
        train=train.fingerprint,
        heldout=heldout.fingerprint,
        eos=encoding.eos,
        max_length=encoding.max_length,
        chat_template=getattr(loaded.tokenizer, "chat_template", None) if train.pairs[0].conversational else None,
        packed=packed,
    )
    cache = FeatureCache(cache_dir, key)
    tensors = cache.load()
    if tensors is None:
        tensors = _extract(loaded, rows, cache, packed, progress)
    if copy_to is not None:
        cache.copy_to(copy_to)
    return _assemble(loaded, encoding, rows, train, heldout, tensors, logits)


@torch.no_grad()
def _extract(
    loaded: LoadedModel, rows: Sequence[Encoded], cache: FeatureCache, packed: bool, progress: bool
) -> dict[str, Tensor]:
    from tqdm import tqdm

    parts = cache.load_parts()
    done = {int(row) for part in parts for row in part["rows"]}
    todo = [index for index in range(len(rows)) if index not in done]
    units = [rows[index].inputs for index in todo]
    plan = [[todo[k] for k in pack] for pack in plan_packs(units, PACK_TOKENS, packed)]
    fresh: list[dict[str, Tensor]] = []
    last_saved = time.monotonic()
    with tqdm(total=len(rows), initial=len(done), unit="pair", desc="features", disable=not progress) as bar:
        for number, members in enumerate(plan):
            result = response_pass(loaded.model, [rows[index] for index in members], packed)
            fresh.append(
                {
                    "rows": torch.tensor(members),
                    "hidden": result.hidden.cpu(),
                    "reference_chosen": result.chosen.double().cpu(),
                    "reference_rejected": result.rejected.double().cpu(),
                }
            )
            bar.update(len(members))
            if time.monotonic() - last_saved > PART_SECONDS and number + 1 < len(plan):
                part = {name: torch.cat([item[name] for item in fresh]) for name in fresh[0]}
                cache.save_part(part.pop("rows"), part)
                parts.extend(fresh)
                fresh, last_saved = [], time.monotonic()
    tensors = fill(parts + fresh, len(rows))
    cache.save(tensors)
    return tensors


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
            chosen_ids=tuple(row.chosen for row in rows[part]),
            rejected_ids=tuple(row.rejected for row in rows[part]),
            reference_chosen=tensors["reference_chosen"][part],
            reference_rejected=tensors["reference_rejected"][part],
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
    )
