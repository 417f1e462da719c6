"""Eq. 16, corrected, against autodiff: token by token, response by response, and its two routes against each other."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from margincast.frozen.tokens import (
    TokenFeatures,
    ches,
    contributions,
    pull,
    response_rates,
    token_rates,
)
from margincast.passes.budgets import Budgets
from margincast.recipe.losses import get_loss

BETA = 0.3


def draw_features(generator: torch.Generator, vocabulary: int, hidden: int, pairs: int, longest: int) -> TokenFeatures:
    """Ragged responses over a small vocabulary, so that tokens are shared."""
    lengths = torch.randint(1, longest + 1, (2 * pairs,), generator=generator)
    response = torch.repeat_interleave(torch.arange(2 * pairs), lengths)
    count = len(response)
    return TokenFeatures(
        torch.randn(count, hidden, generator=generator, dtype=torch.float64),
        torch.randint(0, vocabulary, (count,), generator=generator),
        response,
        pairs,
    )


def logps(features: TokenFeatures, weight: Tensor) -> Tensor:
    """(P,) log-probabilities of the tokens, by autodiff's own softmax."""
    return torch.log_softmax(features.hidden @ weight.T, dim=1)[torch.arange(len(features.hidden)), features.target]


def margins_of(features: TokenFeatures, weight: Tensor, reference: Tensor) -> Tensor:
    rewards = BETA * features.per_response(logps(features, weight) - logps(features, reference))
    return rewards[:, 0] - rewards[:, 1]


def directional(train: TokenFeatures, targets: TokenFeatures, weight: Tensor, reference: Tensor, name: str) -> Tensor:
    """(Q,) d/dt of the targets' rewards when W follows minus the gradient of the mean loss: nothing but autodiff."""
    weight = weight.clone().requires_grad_(True)
    loss = get_loss(name, BETA).value(margins_of(train, weight, reference)).mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    return torch.func.jvp(lambda w: BETA * logps(targets, w), (weight.detach(),), (-gradient,))[1]


def problem(seed: int, vocabulary: int, hidden: int, pairs: int, longest: int) -> tuple[TokenFeatures, ...]:
    generator = torch.Generator().manual_seed(seed)
    train = draw_features(generator, vocabulary, hidden, pairs, longest)
    heldout = draw_features(generator, vocabulary, hidden, 2, longest)
    reference = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64)
    weight = reference + 0.3 * torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64)
    return train, heldout, reference, weight


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).abs().max() / exact.abs().max())


PROBLEMS = {
    "seed": st.integers(0, 2**31),
    "vocabulary": st.integers(2, 12),
    "hidden": st.integers(1, 7),
    "pairs": st.integers(1, 5),
    "longest": st.integers(1, 6),
}


@settings(deadline=None, max_examples=60)
@given(**PROBLEMS, name=st.sampled_from(["sigmoid", "exponential", "hinge"]))
def test_the_factors_add_up_to_autodiffs_derivative(
    seed: int, vocabulary: int, hidden: int, pairs: int, longest: int, name: str
) -> None:
    train, heldout, reference, weight = problem(seed, vocabulary, hidden, pairs, longest)
    exact = directional(train, heldout, weight, reference, name)
    weights = pull(train, get_loss(name, BETA), BETA, margins_of(train, weight, reference))
    total = token_rates(train, heldout, weight, weights, BETA).total
    # Where every residual cancels (one token in the vocabulary twice over) both are rounding of terms of this size.
    size = BETA * float(weights.abs().sum()) * float(train.hidden.norm(dim=1).max() * heldout.hidden.norm(dim=1).max())
    assert float((total - exact).abs().max()) <= 1e-9 * max(float(exact.abs().max()), 1e-6 * size)


@settings(deadline=None, max_examples=40)
@given(**PROBLEMS)
def test_contributions_of_training_positions_add_up_to_each_factor(
    seed: int, vocabulary: int, hidden: int, pairs: int, longest: int
) -> None:
    """Two routes: matrices of the unembedding's shape, and distributions that meet pair by pair."""
    train, heldout, reference, weight = problem(seed, vocabulary, hidden, pairs, longest)
    weights = pull(train, get_loss("sigmoid"), BETA, margins_of(train, weight, reference))
    rates = token_rates(train, heldout, weight, weights, BETA)
    for pair in range(heldout.pairs):
        parts = contributions(train, heldout.select(torch.tensor([pair])), weight, weights, BETA)
        for name in ("cooccurrence", "probability", "correlation"):
            mine = getattr(rates, name)[heldout.pair == pair]
            sides = torch.stack([mine[heldout.sign[heldout.pair == pair] == sign].sum() for sign in (1, -1)])
            torch.testing.assert_close(getattr(parts.by_position, name).sum(0), sides, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(getattr(parts.by_pair, name).sum(0), mine, rtol=1e-9, atol=1e-11)


def test_blocks_change_nothing() -> None:
    train, heldout, reference, weight = problem(3, 11, 5, 6, 7)
    weights = pull(train, get_loss("sigmoid"), BETA, margins_of(train, weight, reference))
    whole = (
        token_rates(train, heldout, weight, weights, BETA),
        contributions(train, heldout.select(torch.tensor([0])), weight, weights, BETA).by_position,
    )
    few = Budgets(logit_block=23)
    blocked = (
        token_rates(train, heldout, weight, weights, BETA, budgets=few),
        contributions(train, heldout.select(torch.tensor([0])), weight, weights, BETA, budgets=few).by_position,
    )
    for one, other in zip(whole, blocked, strict=True):
        torch.testing.assert_close(other.total, one.total, rtol=1e-12, atol=1e-14)


def test_the_printed_difference_in_the_probability_factor_is_not_the_derivative() -> None:
    """V=7, d=5, N=4, L=3 (errata, Eq. 16): with a sum the total is autodiff's, with a difference it is not."""
    train, heldout, reference, weight = problem(0, 7, 5, 4, 3)
    margins = margins_of(train, weight, reference)
    exact = directional(train, heldout, weight, reference, "sigmoid")
    weights = pull(train, get_loss("sigmoid"), BETA, margins)
    rates = token_rates(train, heldout, weight, weights, BETA)
    own = torch.softmax(heldout.hidden @ weight.T, dim=1)
    seen = torch.zeros_like(weight).index_add_(0, train.target, weights[:, None] * train.hidden)
    of_target = BETA * ((own @ seen) * heldout.hidden).sum(1)  # the term S(W g*)[y(p)], added where it is printed minus
    printed = rates.total + 2 * of_target
    assert relative(rates.total, exact) <= 1e-9
    assert relative(printed, exact) > 0.1


def test_response_rates_are_those_of_one_small_step() -> None:
    """A real step of gradient descent: the change of each response's log-probability over its size, to first order."""
    train, heldout, reference, _ = problem(5, 9, 6, 5, 4)
    rates = response_rates(train, heldout, reference, get_loss("sigmoid"), BETA)
    weight = reference.clone().requires_grad_(True)
    get_loss("sigmoid").value(margins_of(train, weight, reference)).mean().backward()
    assert weight.grad is not None
    step = 1e-6
    moved = logps(heldout, reference - step * weight.grad) - logps(heldout, reference + step * weight.grad)
    assert relative(rates, heldout.per_response(moved) / (2 * step)) <= 1e-7


def test_ches_is_its_definition() -> None:
    train = problem(7, 9, 6, 4, 5)[0]
    for normalized in (False, True):
        scores = ches(train, length_normalized=normalized)
        for index in range(train.pairs):
            sums = []
            for side in (0, 1):
                mine = train.hidden[train.response == 2 * index + side]
                sums.append(mine.mean(0) if normalized else mine.sum(0))
            expected = sums[0] @ sums[1] - sums[0] @ sums[0]
            torch.testing.assert_close(scores[index], expected, rtol=1e-12, atol=1e-12)
