"""What may a rule know of the training pairs? Their features, the forecast of a run on all of them, and a fixed draw.

Everything here is linear in the pairs, in time and in memory; what several rules ask for is computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from margincast.diagnose.kernel import pair_points
from margincast.diagnose.leave_one_out import spectrum
from margincast.diagnose.mislabel import Mislabelled, choose, mislabelled_in
from margincast.diagnose.points import Points, S
from margincast.diagnose.sequences import concept_numbers, lengths_of, reference_of, sequence_points
from margincast.diagnose.treatment import treatment
from margincast.errors import InputError
from margincast.features.positions import Positions
from margincast.frozen.attribution.contributions import Attribution
from margincast.frozen.attribution.targets import Target
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.forecast import Forecast
from margincast.frozen.tokens.forecast import TokenForecast
from margincast.records import Pair, PairSet

BLOCK = 4096
# Left-out margins are exact up to so many pairs; beyond, by so many landmarks, so that 100,000 pairs take seconds.
EXACT, LANDMARKS = 2048, 512


@dataclass(frozen=True)
class Evidence:
    """Of N training pairs.

    whole: the forecast of a run on all of them
    seen: the mean margin of the held-out pairs that rules may look at; others judge what they choose
    draw: (N,) float64 in [0, 1), a fixed draw, by which ties are broken;  seed: of it
    """

    whole: Forecast | TokenForecast
    seen: Target
    draw: Tensor
    seed: int

    @property
    def pairs(self) -> PairSet:
        return self.whole.features.train_pairs

    @cached_property
    def concept(self) -> Tensor:
        """(N,) numbers of the concepts."""
        return concept_numbers(self.pairs)

    @cached_property
    def margins(self) -> Tensor:
        """(N,) float64, after the last step of the run on all pairs: their implicit-reward gaps."""
        return self.whole.train.margins[-1].double()

    @cached_property
    def reference(self) -> Tensor:
        """(N,) float64 log pi_ref(chosen) - log pi_ref(rejected). Raises `InputError` where it is not known."""
        features = self.whole.features
        if isinstance(features, Positions):
            sums = reference_of(features.train)
            if sums is None:
                raise InputError("these positions hold no log-probabilities of the reference; extract them again")
            return sums[:, 0] - sums[:, 1]
        return features.train.reference_chosen.double() - features.train.reference_rejected.double()

    @cached_property
    def lengths(self) -> Tensor:
        """(N, 2) float64 tokens of the responses, chosen first."""
        features = self.whole.features
        if isinstance(features, Positions):
            return lengths_of(features.train)
        sides = (features.train.chosen_ids, features.train.rejected_ids)
        return torch.tensor([[len(ids) for ids in side] for side in sides], dtype=torch.float64).T

    @cached_property
    def pooled(self) -> Tensor:
        """(N, hidden) float32: the feature of a response of one token, the mean over both responses of many."""
        features = self.whole.features
        if not isinstance(features, Positions):
            return features.train.hidden.float()
        train = features.train
        sums = torch.zeros(train.pairs, train.hidden.shape[1])
        for part in torch.split(torch.arange(len(train.hidden)), BLOCK):
            sums.index_add_(0, train.pair[part], train.hidden[part].float())
        return sums / torch.bincount(train.pair, minlength=train.pairs)[:, None].clamp(min=1)

    @cached_property
    def left_out(self) -> Mislabelled:
        """Of every pair the margin that all other pairs foresee, and how likely its label is wrong."""
        features = self.whole.features
        if isinstance(features, Positions):
            return _left_out(sequence_points(features.train, self.pairs), self.seed)
        hidden = features.train.hidden
        treated = treatment(hidden)(hidden)
        return _left_out(pair_points(features.train, treated, self.pairs.concepts), self.seed)

    @cached_property
    def influence(self) -> Tensor:
        """(N,) float64: what each pair added to the mean margin of the held-out pairs that rules may look at."""
        if isinstance(self.whole, TokenForecast):
            return self.whole.sums([self.seen], self.whole.steps[-1]).values[0]
        _, heldout = token_spaces(self.whole.features, self.whole.recipe, self.whole.dtype)
        return added_to_mean(self.whole.attributed(), heldout.rows(self.seen.rows))


def _left_out(points: Points[S], seed: int) -> Mislabelled:
    settings = choose(points, seed)
    return mislabelled_in(spectrum(points, settings, seed, exact=EXACT, landmarks=LANDMARKS), points.concept)


def added_to_mean(found: Attribution, targets: TokenSpace) -> Tensor:
    """What each training pair added to the mean margin of `targets`, (N,) float64.

    `Attribution.contributions` of every target and their mean, with the sum over targets taken first: the margin is
    linear in dW, so its mean is <P, dW> with P = beta mean_j delta_j g_j^T, and no pair meets every target.
    """
    mean = targets.pull(torch.full((len(targets),), targets.beta / len(targets), dtype=torch.float64)).to(found.device)
    values = torch.zeros(len(found.train), dtype=torch.float64, device=found.device)
    for rows in torch.split(found.shares.active(), BLOCK):
        moves = found.shares.moves(found.train, rows)
        values[rows] = (mean[found.train.chosen[rows]] * moves.chosen).sum(1)
        values[rows] -= (mean[found.train.rejected[rows]] * moves.rejected).sum(1)
    return values.cpu()


def draw_of(pairs: Sequence[Pair], seed: int) -> Tensor:
    """A number in [0, 1) for every pair, by its id and `seed` alone: the same in any order and on any machine."""
    digests = (hashlib.sha256(f"{seed}/{pair.id}".encode()).digest() for pair in pairs)
    return torch.tensor([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests], dtype=torch.float64)
