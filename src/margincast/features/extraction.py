"""How are lines of pairs made once? Looked for in the cache, else computed pack by pack, by any number of processes.

Under `torchrun` or `accelerate launch`, after `torch.distributed.init_process_group`, each process computes its share
of the packs and leaves it in the cache; the first one assembles them, and all of them read the same lines.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from margincast.errors import InputError, StatedFailure
from margincast.features.cache import CacheKey, FeatureCache, fill, tokens_key
from margincast.models.checks import refuse_unknown_ids
from margincast.models.digest import config_digest, weights_digest
from margincast.models.load import LoadedModel
from margincast.passes.budgets import BUDGETS, Budgets
from margincast.passes.finite import not_finite
from margincast.passes.packing import distinct_tokens
from margincast.passes.plan import agreed_packs, where_it_fits
from margincast.passes.response_pass import packing_problem
from margincast.passes.tokenize import Encoded, Encoding
from margincast.processes import everyone, process, processes
from margincast.records import Pair, PairSet


@dataclass(frozen=True)
class Kept:
    """What an extraction keeps of pairs: `height` lines of each, made by `lines` for a pack of them, pair after pair.

    kind: its name in the key of the cache
    parts: by kind, which of its tensors another one leaves out; the rest is cached for it too
    """

    kind: str
    height: Callable[[Encoded], int]
    lines: Callable[[Any, Sequence[Encoded], bool, Budgets], dict[str, Tensor]]
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)


def kept_tensors(
    loaded: LoadedModel,
    encoding: Encoding,
    train: PairSet,
    heldout: PairSet,
    kept: Kept,
    *,
    cache_dir: Path,
    progress: bool = False,
    copy_to: Path | None = None,
    say: Callable[[str], None] = warnings.warn,
    budgets: Budgets = BUDGETS,
) -> dict[str, Tensor]:
    """What `kept` says of training then held-out pairs, cached or from the model. Arguments of `features_of`."""
    rows = (*encoding.select(train).rows, *encoding.select(heldout).rows)
    refuse_unknown_ids(loaded, rows_in_full(rows))
    packed = CacheKey(
        weights=weights_digest(loaded.model),
        config=config_digest(loaded.model),
        dtype=loaded.dtype,
        kernel=str(loaded.model.config._attn_implementation),
        tokens=tokens_key(rows),
        packed=True,
        kind=kept.kind,
    )
    # Looked for before the model is asked anything: what was made is used, however it was made.
    for key in (packed, replace(packed, packed=False)):
        cache = FeatureCache(cache_dir, key)
        tensors = _cached(cache)
        if tensors is not None:
            break
    if tensors is None:
        with evaluating(loaded.model):
            problem = next(filter(None, everyone(packing_problem(loaded.model, rows))), None)
            if problem and process() == 0:
                say(f"{loaded.name} is given padded batches, which are slower than packed ones: {problem}")
            cache = FeatureCache(cache_dir, replace(packed, packed=problem is None))
            with cache.claimed() if process() == 0 else nullcontext():
                everyone(None)  # this run is the only one at it
                tensors = _cached(cache)  # another run may have made it meanwhile
                if tensors is None:
                    tensors = _extract(loaded, rows, train.pairs + heldout.pairs, kept, cache, progress, budgets)
    if copy_to is not None and process() == 0:
        cache.copy_to(copy_to)
    return tensors


def _cached(cache: FeatureCache) -> dict[str, Tensor] | None:
    """The cached tensors where every process of this run has them."""
    tensors = cache.load()
    return tensors if all(everyone(tensors is not None)) else None


def rows_in_full(rows: Sequence[Encoded]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The token ids of every pair, those included that are predicted alone."""
    return ((row.prompt, row.chosen, row.rejected) for row in rows)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model with nothing dropped, and then as it was: it may be somebody's, in the midst of training."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@torch.no_grad()
def _extract(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    pairs: Sequence[Pair],
    kept: Kept,
    cache: FeatureCache,
    progress: bool,
    budgets: Budgets,
) -> dict[str, Tensor]:
    from tqdm import tqdm

    def compute(members: Sequence[int]) -> dict[str, Tensor]:
        return kept.lines(loaded.model, [rows[index] for index in members], packed, budgets)

    rank, count, packed = process(), processes(), cache.key.packed
    offsets = [0, *accumulate(map(kept.height, rows))]
    done = everyone(_lines_of(cache.load_parts() if rank == 0 else []))[0]
    todo = [index for index in range(len(rows)) if offsets[index] not in done]
    plan = agreed_packs(loaded.model, [rows[index].inputs for index in todo], packed, budgets)
    share = [[todo[k] for k in members] for members in plan[rank::count]]
    tokens = [distinct_tokens([ids for index in members for ids in rows[index].inputs]) for members in share]
    fresh: list[dict[str, Tensor]] = []
    last_saved = time.monotonic()
    name = "features" if count == 1 else f"features, 1 of {count} processes"
    hide = not progress or rank > 0
    with tqdm(total=sum(tokens), unit="token", unit_scale=True, desc=name, disable=hide) as bar:
        for number, members in enumerate(share):
            if time.monotonic() - last_saved > budgets.save_seconds and fresh:
                _save_part(cache, fresh)
                fresh, last_saved = [], time.monotonic()
            for fitting, lines in where_it_fits(loaded.model, members, lambda row: rows[row].inputs, packed, compute):
                where = torch.cat([torch.arange(offsets[index], offsets[index + 1]) for index in fitting])
                _refuse_infinite(loaded, lines, [(rows[index], pairs[index]) for index in fitting], kept)
                fresh.append({"rows": where, **lines})
            bar.update(tokens[number])
    if rank > 0 and fresh:
        _save_part(cache, fresh)
    everyone(None)  # every part is written
    parts = cache.load_parts() + fresh if rank == 0 else []
    done = everyone(_lines_of(parts))[0]
    missing = sum(offset not in done for offset in offsets[:-1])
    if missing:
        raise StatedFailure(
            f"{missing} of {len(rows)} pairs that were computed are not in {cache.folder}; "
            "the cache must be one folder that all processes of a run share"
        )
    tensors = fill(parts, offsets[-1]) if rank == 0 else None
    if tensors is not None:
        about: dict[str, str | int] = {"model": loaded.name, "pairs": len(rows)}
        cache.save(tensors, about)
        for kind, left_out in kept.parts.items():
            part = {name: each for name, each in tensors.items() if name not in left_out}
            cache.of_kind(kind).save(part, about)
    everyone(None)  # the features are written
    tensors = tensors or cache.load()
    if tensors is None:
        raise StatedFailure(f"process {rank} cannot read the features that process 0 wrote in {cache.folder}")
    return tensors


def _refuse_infinite(
    loaded: LoadedModel, lines: Mapping[str, Tensor], members: Sequence[tuple[Encoded, Pair]], kept: Kept
) -> None:
    """Raises `InputError` for the first of a pack's pairs with a number that is not finite, in its file or layer."""
    finite = torch.stack(
        [each.flatten(1).isfinite().all(dim=1) if each.ndim > 1 else each.isfinite() for each in lines.values()]
    )
    if bool(finite.all()):
        return
    owner = torch.repeat_interleave(torch.arange(len(members)), torch.tensor([kept.height(row) for row, _ in members]))
    bad = torch.unique(owner[~finite.all(dim=0)])
    row, pair = members[int(bad[0])]
    more = f" (and {len(bad) - 1} more of the {len(members)} pairs read with it)" if len(bad) > 1 else ""
    raise InputError(
        f"{pair.source}, line {pair.line}: what {loaded.name} computes for pair {pair.id} is not finite{more}: "
        f"{not_finite(loaded.model, row)}"
    )


def _save_part(cache: FeatureCache, fresh: Sequence[dict[str, Tensor]]) -> None:
    part = {name: torch.cat([item[name] for item in fresh]) for name in fresh[0]}
    cache.save_part(part.pop("rows"), part)


def _lines_of(parts: Sequence[dict[str, Tensor]]) -> set[int]:
    return {int(row) for part in parts for row in part["rows"]}
