"""What does the frozen model know about every response token? The features g that predict it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.features.extract import known_logits
from margincast.features.extraction import Kept, kept_tensors, rows_in_full
from margincast.models.adapter import adapter_trained, without_adapter
from margincast.models.checks import refuse_unknown_ids
from margincast.models.device import AUTO, forecast_device
from margincast.models.load import LoadedModel, default_cache_dir, opened
from margincast.passes.budgets import Budgets
from margincast.passes.hooks import unwrapped
from margincast.passes.response_pass import hidden_states, logit_transform, logits_of
from margincast.passes.tokenize import Encoded, Encoding, encode, message_starts
from margincast.records import FeatureSet, PairSet
from margincast.results import Json

IN_CACHE = 8  # rows of logits that a processor's cache holds


@dataclass(frozen=True)
class TokenFeatures:
    """Every response position of some pairs, laid end to end: P of them, a chosen response before the rejected one.

    hidden: (P, hidden) the features g, already times the factor that the model puts on its logits
    target: (P,) the token that comes there;  response: (P,) 2i for the chosen, 2i + 1 for the rejected
    response of pair i;  pairs: how many pairs there are
    reference: (P,) float64 log-probabilities under the reference, where known
    start: (P,) float64 the same under the policy, the model that the features are of, where that is not the reference:
    one with a trained adapter, whose reference is the model without it
    averaged: rewards of responses are means over their tokens, not sums
    turn: (P,) the message of its response that a token is of, from 0; None where every response is one message
    """

    hidden: Tensor
    target: Tensor
    response: Tensor
    pairs: int
    reference: Tensor | None = None
    turn: Tensor | None = None
    averaged: bool = False
    start: Tensor | None = None

    @property
    def pair(self) -> Tensor:
        """(P,) the pair of every position."""
        return self.response // 2

    @property
    def share(self) -> Tensor:
        """(P,) how much a position counts in the reward of its response: 1, or 1 over its length where `averaged`."""
        if not self.averaged:
            return torch.ones_like(self.hidden[:, 0])
        return torch.bincount(self.response)[self.response].to(self.hidden).reciprocal()

    @property
    def sign(self) -> Tensor:
        """(P,) `share` at positions of chosen responses, minus that at those of rejected ones."""
        return (1 - 2 * (self.response % 2)) * self.share

    @property
    def policy_logps(self) -> Tensor | None:
        """(P,) float64 log-probabilities under the policy before training, where known."""
        return self.reference if self.start is None else self.start

    @property
    def start_log_ratios(self) -> Tensor | None:
        """(P,) float64 log(pi / pi_ref) before training; None where the policy is its own reference."""
        if self.start is None or self.reference is None:
            return None
        return self.start.double() - self.reference.double()

    def select(self, pairs: Tensor) -> TokenFeatures:
        """The positions of `pairs`, (n,) indices, which are numbered anew in that order. Positions keep their order."""
        number = self.response.new_full((self.pairs,), -1)
        number[pairs] = torch.arange(len(pairs), device=number.device)
        mine = number[self.pair] >= 0
        return replace(
            self.positions(mine), response=2 * number[self.pair[mine]] + self.response[mine] % 2, pairs=len(pairs)
        )

    def redrawn(self, rows: Tensor, turned: Tensor) -> TokenFeatures:
        """The pairs at `rows`, (n,) indices that may repeat, chosen and rejected swapped where `turned`."""
        sources = torch.stack([2 * rows + turned, 2 * rows + 1 - turned.long()], dim=1).flatten()
        lengths = torch.bincount(self.response, minlength=2 * self.pairs)
        order, first = torch.argsort(self.response, stable=True), lengths.cumsum(0) - lengths
        counts = lengths[sources]
        within = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        places = order[torch.repeat_interleave(first[sources], counts) + within]
        response = torch.repeat_interleave(torch.arange(len(sources)), counts)
        return replace(self.positions(places), response=response, pairs=len(rows))

    def positions(self, places: Tensor) -> TokenFeatures:
        """The positions at `places`, a mask (P,) or indices; pairs keep their numbers."""
        return self._changed(lambda each: each[places])

    def to(self, device: torch.device) -> TokenFeatures:
        """The same with tensors on `device`."""
        return self._changed(lambda each: each.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> TokenFeatures:
        """With `change` of every tensor in its place."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        changed: Json = {name: change(each) for name, each in held.items() if isinstance(each, Tensor)}
        return replace(self, **changed)

    def as_single(self, pairs: PairSet) -> FeatureSet:
        """The same as features of one position, where every response of `pairs`, which these are of, is one token."""
        reference = torch.zeros(len(self.target), dtype=torch.float64) if self.reference is None else self.reference
        order = torch.argsort(self.response, stable=True).view(-1, 2)
        ids, sums = self.target[order].tolist(), reference[order]
        start = (None, None) if self.start is None else self.start[order].unbind(1)
        return FeatureSet(
            pairs=pairs,
            hidden=self.hidden[order[:, 0]],
            chosen_ids=tuple((chosen,) for chosen, _ in ids),
            rejected_ids=tuple((rejected,) for _, rejected in ids),
            reference_chosen=sums[:, 0],
            reference_rejected=sums[:, 1],
            start_chosen=start[0],
            start_rejected=start[1],
        )

    def per_response(self, values: Tensor) -> Tensor:
        """Sums of `values`, (P, ...), over the tokens of each response: (pairs, 2, ...), chosen first."""
        sums = values.new_zeros(2 * self.pairs, *values.shape[1:]).index_add(0, self.response, values)
        return sums.reshape(self.pairs, 2, *values.shape[1:])


@dataclass(frozen=True, repr=False)
class Positions:
    """Features of every response position of a data set under one model: `Features` for responses of any length.

    train_pairs, heldout_pairs: what `train` and `heldout` are of;  unembedding: (V, hidden);  bias: (V,), if any
    model, model_hash: name of the model, and of its weights where they are known
    device: where forecasts of them are calculated, that of the model; the tensors themselves are on the CPU
    """

    train: TokenFeatures
    heldout: TokenFeatures
    train_pairs: PairSet
    heldout_pairs: PairSet
    unembedding: Tensor
    bias: Tensor | None
    model: str
    model_hash: str = ""
    device: str = AUTO

    def __repr__(self) -> str:
        count = len(self.train.target) + len(self.heldout.target)
        return f"Positions({count} of {len(self.train_pairs)} + {len(self.heldout_pairs)} pairs, {self.model})"

    def averaged(self, averaged: bool) -> Positions:
        """With rewards that are means over the tokens of a response, or their sums."""
        return replace(
            self,
            train=replace(self.train, averaged=averaged),
            heldout=replace(self.heldout, averaged=averaged),
        )

    def there(self) -> Positions:
        """With the tensors on the device that forecasts are calculated on."""
        device = forecast_device(self.device)
        return replace(
            self,
            train=self.train.to(device),
            heldout=self.heldout.to(device),
            unembedding=self.unembedding.to(device),
            bias=None if self.bias is None else self.bias.to(device),
        )

    def redrawn(self, pairs: PairSet, rows: Tensor, turned: Tensor) -> Positions:
        """With the training pairs at `rows`, now called `pairs`, chosen and rejected swapped where `turned`."""
        return replace(self, train=self.train.redrawn(rows, turned), train_pairs=pairs)


def extract_positions(
    model: str | Path | LoadedModel | tuple[Any, Any],
    train: PairSet,
    heldout: PairSet,
    *,
    eos: bool | None = None,
    max_length: int = 1024,
    cache_dir: str | Path | None = None,
    progress: bool = False,
) -> Positions:
    """`extract_features` at every response position, cached as it is, of a model with an adapter too.

    Raises what `token_features` raises.
    """
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
    loaded = opened(model, cache)
    both = PairSet(train.pairs + heldout.pairs)
    encoding = encode(both, loaded.tokenizer, eos=eos, max_length=max_length, context=loaded.context)
    for notice in encoding.notices:
        warnings.warn(notice, stacklevel=2)
    features = token_features(loaded, encoding, train, heldout, cache_dir=cache, progress=progress)
    return Positions(*features, train, heldout, *head_of(loaded), loaded.name, loaded.hash, loaded.device)


def head_of(loaded: LoadedModel) -> tuple[Tensor, Tensor | None]:
    """(unembedding (V, hidden), bias (V,) or None) that make the model's logits from `TokenFeatures.hidden`."""
    head = loaded.model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    scaled = None if bias is None else bias.detach().cpu() * logit_transform(loaded.model)[0]
    return head.weight.detach().cpu(), scaled


def token_features(
    loaded: LoadedModel,
    encoding: Encoding,
    train: PairSet,
    heldout: PairSet,
    *,
    cache_dir: Path,
    progress: bool = False,
    copy_to: Path | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> tuple[TokenFeatures, TokenFeatures]:
    """Features at every response position of both splits, cached, continued and packed as `features_of` does.

    Raises `InputError` for a model whose logits are not linear in the unembedding.
    """
    refuse_unknown_ids(loaded, rows_in_full(encoding.rows))
    logits = known_logits(loaded, encoding.rows, cache_dir)
    if logits != "linear":
        raise InputError(f"the logits of {loaded.name} are {logits}: the decomposition is of logits linear in W")
    tensors = kept_tensors(
        loaded, encoding, train, heldout, POSITIONS, cache_dir=cache_dir, progress=progress, copy_to=copy_to, say=say
    )
    scale = logit_transform(loaded.model)[0]
    splits, start = [], 0
    for part in (train, heldout):
        rows = encoding.select(part).rows
        sides = [side for row in rows for side in (row.chosen, row.rejected)]
        lines = slice(start, start + sum(map(len, sides)))
        start = lines.stop
        features = laid_out(sides, {name: each[lines] for name, each in tensors.items()}, scale)
        splits.append(replace(features, turn=_turns(part, rows, loaded.tokenizer)))
    return splits[0], splits[1]


def laid_out(sides: Sequence[Sequence[int]], lines: Mapping[str, Tensor], scale: float) -> TokenFeatures:
    """Features of responses with the token ids `sides`, a chosen one before its rejected one.

    lines: what `POSITIONS` keeps of their positions, one after the other;  scale: the factor that the model puts on its
    logits
    """
    lengths = torch.tensor([len(side) for side in sides])
    response = torch.repeat_interleave(torch.arange(len(sides)), lengths)
    target = torch.tensor([token for side in sides for token in side])
    hidden = lines["hidden"] if scale == 1.0 else lines["hidden"] * scale
    reference, start = lines["reference"], lines.get("start")
    return TokenFeatures(hidden, target, response, len(sides) // 2, reference, start=start)


def _turns(pairs: PairSet, rows: Sequence[Encoded], tokenizer: Any) -> Tensor | None:
    """`TokenFeatures.turn` of `pairs`."""
    if not any(pair.conversational and max(len(pair.chosen), len(pair.rejected)) > 1 for pair in pairs):
        return None
    turns = []
    for pair, row in zip(pairs, rows, strict=True):
        for side, starts in zip((row.chosen, row.rejected), message_starts(pair, row, tokenizer), strict=True):
            turns.append(torch.searchsorted(torch.tensor(starts), torch.arange(len(side)), right=True) - 1)
    return torch.cat(turns)


def _position_lines(model: Any, batch: Sequence[Encoded], packed: bool, budgets: Budgets) -> dict[str, Tensor]:
    """Of a model with a trained adapter, features and `start` are read with it, the reference without."""
    hidden, logps = _hidden_and_logps(model, batch, packed, budgets)
    if not adapter_trained(model):
        return {"hidden": hidden, "reference": logps}
    with without_adapter(model):
        _, reference = _hidden_and_logps(model, batch, packed, budgets)
    return {"hidden": hidden, "reference": reference, "start": logps}


def _hidden_and_logps(model: Any, batch: Sequence[Encoded], packed: bool, budgets: Budgets) -> tuple[Tensor, Tensor]:
    """At every response position what the unembedding multiplies, (P, hidden), and the log-probability, (P,) float64,
    of the token that comes there."""
    hidden, where = hidden_states(model, batch, packed)
    if len(batch) > 1 and not bool(hidden.isfinite().all()):
        # As in `response_pass`: what is not finite in one pair stays in it.
        alone = [_hidden_and_logps(model, [pair], packed, budgets) for pair in batch]
        return torch.cat([each[0] for each in alone]), torch.cat([each[1] for each in alone])
    order = torch.argsort(where.response, stable=True)
    mine, target = hidden[where.row[order]], where.target[order]
    height = max(1, budgets.logit_block // len(head_weight(model)))
    blocks = [slice(start, start + height) for start in range(0, len(mine), height)]
    logps = [_logps(logits_of(model, mine[rows]), target[rows].to(mine.device)) for rows in blocks]
    return mine.cpu(), torch.cat(logps).cpu().double()


def _logps(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities of the tokens `target`, (rows,), under `logits`, (rows, V), in float32 at least.

    `log_softmax` of all logits would fill, and clear before, as much memory again, for one number of each row.
    """
    found = []
    for some, tokens in zip(torch.split(logits, IN_CACHE), torch.split(target, IN_CACHE), strict=True):
        exact = some.to(torch.promote_types(some.dtype, torch.float32))
        found.append(exact.gather(1, tokens[:, None])[:, 0] - exact.logsumexp(1))
    return torch.cat(found)


def head_weight(model: Any) -> Tensor:
    """(V, hidden), on the model's device."""
    weight: Tensor = unwrapped(model).get_output_embeddings().weight
    return weight


POSITIONS = Kept("positions", lambda row: len(row.chosen) + len(row.rejected), _position_lines)
