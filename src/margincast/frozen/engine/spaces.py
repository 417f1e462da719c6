"""Which features do the single-token equations cover, and how does the state see them?"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.losses import Loss
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet

# Features that would take, in float64, more than this share of the machine's memory are used as they are stored: the
# operating system maps them from their file and reads the rows that the kernel walks over.
MEMORY_SHARE = 0.25
FINITE_ROWS = 4096  # that are checked at once


def precision(features: Features) -> torch.dtype:
    """What a forecast of `features` is calculated in: float64, or what they are stored in where they are that large."""
    numbers = features.train.hidden.numel() + features.heldout.hidden.numel()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.float64 if 8 * numbers <= MEMORY_SHARE * memory else features.train.hidden.dtype


def token_spaces(features: Features, recipe: Recipe, dtype: torch.dtype | None = None) -> tuple[TokenSpace, TokenSpace]:
    """Training and held-out pairs of `features` as the state of a run of `recipe` sees them.

    dtype: of the features there; None is `precision(features)`

    Raises `InputError` for features the single-token equations do not cover, and for features that are not finite.
    """
    if features.logits != "linear":
        raise InputError(
            f"the logits of {features.model} are {features.logits}, so margins are not linear in the unembedding and "
            "the frozen forecast does not hold for it; use a model without soft-capping"
        )
    refuse_multi_token(features.train.single_token and features.heldout.single_token)

    wanted = precision(features) if dtype is None else dtype

    def space(split: FeatureSet, name: str) -> TokenSpace:
        hidden = split.hidden.to(wanted)
        hidden = hidden if features.scale == 1.0 else hidden * features.scale
        bad = _not_finite(hidden)
        if bad is not None:
            raise InputError(
                f"the features of {name} pair {split.pairs[bad].id} are not finite; extract them in float32"
            )
        chosen, rejected = (
            torch.searchsorted(features.tokens, torch.tensor([ids[0] for ids in side]))
            for side in (split.chosen_ids, split.rejected_ids)
        )
        start = start_margins(split, recipe)
        return TokenSpace(hidden, chosen, rejected, recipe.beta, len(features.tokens), start)

    return space(features.train, "training"), space(features.heldout, "held-out")


def start_margins(split: FeatureSet, recipe: Recipe) -> Tensor | None:
    """The margins before training, (pairs,) float64; None where the state gives them: 0 of a policy that is its own
    reference, W0's for a loss without a reference."""
    ratios = split.start_log_ratios
    if ratios is None or recipe.loss.reference_free:
        return None
    return recipe.beta * (ratios[0] - ratios[1])


def _not_finite(hidden: Tensor) -> int | None:
    """The first row that is not, looked at by blocks."""
    for start in range(0, len(hidden), FINITE_ROWS):
        finite = hidden[start : start + FINITE_ROWS].isfinite().all(dim=1)
        if not bool(finite.all()):
            return start + int((~finite).nonzero()[0])
    return None


def refuse_multi_token(single_token: bool) -> None:
    """Raises `InputError` unless every response is a single token: the equations above hold for no others."""
    if not single_token:
        raise InputError(
            "a response has more than one token, and these equations are of single tokens; use "
            "`tokens.forecast_tokens`, or eos=False where only TRL's end-of-sequence token is too many"
        )


def refuse_bias(features: Features, loss: Loss) -> None:
    """Raises `InputError` for a loss without a reference where margins would start from the head's bias."""
    if loss.reference_free and features.bias is not None:
        raise InputError(
            f"loss_type {loss.name!r} leaves the reference out, and the unembedding of {features.model} has a bias, "
            "which its margins start from; forecast it with a loss that has a reference"
        )
