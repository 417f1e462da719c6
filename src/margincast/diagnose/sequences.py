"""How much does learning one pair of long responses move another? The kernel of what tells their responses apart.

A pair is told by differences, chosen less rejected, each scaled to a mean square norm of 1: x of the mean feature over
the response times log(1 + its length), y of the feature at its last token, u of the largest and the smallest value that
each feature has in the response, z of what can be said of a response without reading it, log length, log-probability
under the model and the same per token. With d the difference of the one-hot vectors of the first tokens and g the
prompt's feature,

    K_ij = [x_i.x_j + a y_i.y_j + f u_i.u_j + b z_i.z_j + c (d_i.d_j)(g_i.g_j)] (1 + e [same concept]) / (1 + e)

which turns its sign with that of either pair. The term with c is the kernel of single-token responses. a = f = 1 and
b = c = 0.3; e is chosen by leave-one-out loss. To choose all of them so cost .01 of AUROC on planted flips in 500 chat
pairs. Whitening features, which helps with single tokens, does harm here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.diagnose.kernel import bonds_of
from margincast.diagnose.neighbours import nearest_sequences
from margincast.diagnose.points import Neighbours
from margincast.diagnose.treatment import treatment
from margincast.features.positions import TokenFeatures
from margincast.records import PairSet
from margincast.results import Json

BLOCK = 4096  # positions that are in float64 at once


@dataclass(frozen=True)
class SequenceSettings:
    """Weights beside the 1 of x. last: a;  extremes: f;  covariates: b;  first: c;  bond: e"""

    last: float = 1.0
    extremes: float = 1.0
    covariates: float = 0.3
    first: float = 0.3
    bond: float = 0.0

    def said(self) -> Json:
        return {
            "last_token_weight": self.last,
            "extremes_weight": self.extremes,
            "covariates_weight": self.covariates,
            "first_token_weight": self.first,
            "concept_bond": self.bond,
        }


@dataclass(frozen=True)
class SequencePoints:
    """What the kernel sees of pairs: differences of chosen and rejected, and where the pairs and responses lie.

    content, last: (pairs, hidden);  extremes: (pairs, 2 hidden);  covariates: (pairs, 3)
    first: (pairs, 2) first tokens, chosen first
    prompts, chosen, rejected: (pairs, hidden) treated features of unit length, of the responses their means
    concept: (pairs,)
    """

    content: Tensor
    last: Tensor
    extremes: Tensor
    covariates: Tensor
    first: Tensor
    prompts: Tensor
    chosen: Tensor
    rejected: Tensor
    concept: Tensor

    def __len__(self) -> int:
        return len(self.content)

    def select(self, rows: Tensor) -> SequencePoints:
        return SequencePoints(**{name: value[rows] for name, value in vars(self).items()})

    def kernel(self, rows: Tensor, columns: Tensor, settings: SequenceSettings) -> Tensor:
        total = self.content[rows] @ self.content[columns].T
        for weight, side in (
            (settings.last, self.last),
            (settings.extremes, self.extremes),
            (settings.covariates, self.covariates),
        ):
            if weight:
                total += weight * side[rows] @ side[columns].T
        if settings.first:
            total += settings.first * self._first_tokens(rows, columns)
        total *= 1 + settings.bond * (self.concept[rows, None] == self.concept[columns])
        return total / (1 + settings.bond)

    def beside(self, others: SequencePoints, pairs: PairSet) -> SequencePoints:
        """These points and `others`, `pairs` in all: concepts are numbered anew, as both sides may name them."""
        whole = {name: torch.cat([value, getattr(others, name)]) for name, value in vars(self).items()}
        return SequencePoints(**{**whole, "concept": concept_numbers(pairs)})

    def pushes(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.kernel(rows, columns, SequenceSettings(first=0.0))

    def choose(self, loss: Callable[[SequenceSettings], float]) -> SequenceSettings:
        return min((SequenceSettings(bond=bond) for bond in bonds_of(self.concept)), key=loss)

    def nearest(self, pairs: PairSet, *, opposite: bool) -> Neighbours:
        return nearest_sequences(self.prompts, self.chosen, self.rejected, pairs, opposite=opposite)

    def _first_tokens(self, rows: Tensor, columns: Tensor) -> Tensor:
        shared = self.content.new_zeros(len(rows), len(columns))
        for side in (0, 1):
            for other in (0, 1):
                same = self.first[rows, side, None] == self.first[columns, other]
                shared += (0.5 if side == other else -0.5) * same
        return shared * (self.prompts[rows] @ self.prompts[columns].T)


def sequence_points(features: TokenFeatures, pairs: PairSet) -> SequencePoints:
    """`pairs`, whose features are `features`, as the kernel sees them."""
    hidden, lengths = features.hidden, lengths_of(features)
    means = mean_features(features)
    ends = torch.bincount(features.response, minlength=2 * features.pairs).cumsum(0).view(-1, 2)
    order = torch.argsort(features.response, stable=True)
    starts = ends - lengths.long()
    sums = reference_of(features)
    known = [torch.log(lengths), *([] if sums is None else [sums, sums / lengths])]
    # Both responses begin after the same prompt.
    prompts, responses = hidden[order[starts]].double().mean(dim=1), means.reshape(-1, means.shape[-1])
    chosen, rejected = treatment(responses)(responses).double().view(means.shape).unbind(1)
    return SequencePoints(
        content=_scaled(_difference(means * torch.log1p(lengths)[..., None])),
        last=_scaled(_difference(hidden[order[ends - 1]].double())),
        extremes=_scaled(_difference(extreme_features(features))),
        covariates=_scaled(torch.cat([_scaled(_difference(each)[:, None]) for each in known], dim=1)),
        first=features.target[order[starts]],
        prompts=treatment(prompts)(prompts).double(),
        chosen=chosen,
        rejected=rejected,
        concept=concept_numbers(pairs),
    )


def mean_features(features: TokenFeatures) -> Tensor:
    """Mean feature of every response, (pairs, 2, hidden) float64, chosen first."""
    sums = torch.zeros(2 * features.pairs, features.hidden.shape[1], dtype=torch.float64)
    for part in torch.split(torch.arange(len(features.hidden)), BLOCK):
        sums.index_add_(0, features.response[part], features.hidden[part].double())
    return sums.view(features.pairs, 2, -1) / lengths_of(features)[..., None]


def extreme_features(features: TokenFeatures) -> Tensor:
    """Largest and smallest value of each feature in every response, (pairs, 2, 2 hidden) float64, chosen first."""
    shape = (2 * features.pairs, features.hidden.shape[1])
    largest = torch.full(shape, -torch.inf, dtype=torch.float64)
    smallest = torch.full(shape, torch.inf, dtype=torch.float64)
    for part in torch.split(torch.arange(len(features.hidden)), BLOCK):
        values = features.hidden[part].double()
        rows = features.response[part, None].expand_as(values)
        largest.scatter_reduce_(0, rows, values, "amax")
        smallest.scatter_reduce_(0, rows, values, "amin")
    return torch.cat([largest, smallest], dim=1).view(features.pairs, 2, -1)


def concept_numbers(pairs: PairSet) -> Tensor:
    """(pairs,) the place of each pair's concept in `pairs.concepts`."""
    number = {name: k for k, name in enumerate(pairs.concepts)}
    return torch.tensor([number[pair.concept] for pair in pairs])


def lengths_of(features: TokenFeatures) -> Tensor:
    """Tokens of every response, (pairs, 2) float64, chosen first."""
    return torch.bincount(features.response, minlength=2 * features.pairs).view(-1, 2).double()


def reference_of(features: TokenFeatures) -> Tensor | None:
    """Log-probability of every response under the model, (pairs, 2) float64, where it is known."""
    logps = features.policy_logps
    return None if logps is None else features.per_response(logps.double())


def _difference(sides: Tensor) -> Tensor:
    return sides[:, 0] - sides[:, 1]


def _scaled(rows: Tensor) -> Tensor:
    """With a mean square norm of 1; all zeros stay so."""
    scale = rows.square().sum(dim=1).mean().sqrt()
    return rows / scale if float(scale) > 0 else rows
