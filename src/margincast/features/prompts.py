"""What does the frozen model make of every prompt? The mean of its states over the prompt, rare tokens weighing most.

By the state at the last position alone, prompts are alike that call for like answers: it says little about their topic
(docs/data.md has the measurement). Weights are inverse document frequencies over the training prompts, so what a
template puts into every prompt weighs next to nothing.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from margincast.features.extraction import Kept, kept_tensors
from margincast.models.load import LoadedModel, default_cache_dir, opened
from margincast.passes.budgets import Budgets
from margincast.passes.response_pass import hidden_states
from margincast.passes.tokenize import Encoded, Encoding, encode
from margincast.records import PairSet


@dataclass(frozen=True, repr=False)
class Prompts:
    """Features of the prompts of a data set under one model. Row k belongs to pair k.

    train, heldout: (pairs, hidden), weighted means over the prompt of the states that the unembedding receives
    train_pairs, heldout_pairs: what they are of
    """

    train: Tensor
    heldout: Tensor
    train_pairs: PairSet
    heldout_pairs: PairSet
    model: str

    def __repr__(self) -> str:
        return f"Prompts({len(self.train)} + {len(self.heldout)} pairs, {self.model})"


def extract_prompts(
    model: str | Path | LoadedModel | tuple[Any, Any],
    train: PairSet,
    heldout: PairSet,
    *,
    max_length: int = 1024,
    cache_dir: str | Path | None = None,
    progress: bool = False,
) -> Prompts:
    """Features of prompts, by which `find_topics` groups pairs. One pass over the prompts, cached and continued.

    Arguments and errors as of `extract_features`.
    """
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
    loaded = opened(model, cache)
    both = PairSet(train.pairs + heldout.pairs)
    encoding = encode(both, loaded.tokenizer, max_length=max_length, context=loaded.context)
    return prompts_of(loaded, encoding, train, heldout, cache_dir=cache, progress=progress)


def prompts_of(
    loaded: LoadedModel,
    encoding: Encoding,
    train: PairSet,
    heldout: PairSet,
    *,
    cache_dir: Path,
    progress: bool = False,
    say: Callable[[str], None] = warnings.warn,
) -> Prompts:
    """`extract_prompts` for pairs that are already encoded. `say` is told once why batches are padded."""
    weights = _weights([row.prompt for row in encoding.select(train).rows])

    def lines(model: Any, batch: Sequence[Encoded], packed: bool, budgets: Budgets) -> dict[str, Tensor]:
        return {"hidden": _means(model, batch, packed, weights)}

    # Rows are in the key of the cache; how many of them are training prompts, which the weights depend on, is not.
    kept = Kept(f"prompts of {len(train)} training pairs", lambda row: 1, lines)
    whole = replace(encoding, rows=tuple(map(_as_response, encoding.rows)))
    hidden = kept_tensors(loaded, whole, train, heldout, kept, cache_dir=cache_dir, progress=progress, say=say)[
        "hidden"
    ]
    return Prompts(hidden[: len(train)], hidden[len(train) :], train, heldout, loaded.name)


def _as_response(row: Encoded) -> Encoded:
    """A row whose chosen response has one position at every token of the prompt, and whose rejected one adds none.

    The last token of a response is never an input, so it may be any.
    """
    first = row.prompt[:1]
    return Encoded(first, row.prompt[1:] + first, first)


def _weights(prompts: Sequence[tuple[int, ...]]) -> Callable[[int], float]:
    """log (n + 2) / (m + 1) of a token that m of n prompts hold: above 0, so that no prompt is without weight."""
    holding = Counter(token for prompt in prompts for token in set(prompt))
    return lambda token: math.log((len(prompts) + 2) / (holding[token] + 1))


def _means(model: Any, batch: Sequence[Encoded], packed: bool, weight: Callable[[int], float]) -> Tensor:
    """(batch, hidden) float32 weighted means over the prompts."""
    hidden, where = hidden_states(model, batch, packed)
    chosen = where.response % 2 == 0
    states = hidden[where.row[chosen]].cpu().double()
    weights = [[weight(token) for token in (*row.prompt, *row.chosen[:-1])] for row in batch]
    shares = torch.tensor([value / sum(row) for row in weights for value in row], dtype=torch.float64)
    means = torch.zeros(len(batch), states.shape[1], dtype=torch.float64)
    return means.index_add(0, where.response[chosen] // 2, states * shares[:, None]).float()
