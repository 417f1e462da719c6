"""Who pushes chosen responses down: by a second route, and by really leaving pairs out."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings

from margincast.frozen.tokens import contributions, displacement, forecast_tokens, pull, response_rates
from margincast.frozen.tokens.decomposition import along, velocity
from margincast.frozen.tokens.displacement import to_drop
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.records import PairSet
from tests.frozen.tokens.test_decomposition import BETA, PROBLEMS, margins_of, problem
from tests.problems import make_pairs
from tests.recipes import head_recipe


@settings(deadline=None, max_examples=40)
@given(**PROBLEMS)
def test_a_weighted_direction_moves_training_positions_as_contributions_say(
    seed: int, vocabulary: int, hidden: int, pairs: int, longest: int
) -> None:
    """Blame, by a second route: targets first (two matrices), then training positions one pair at a time."""
    train, heldout, reference, weight = problem(seed, vocabulary, hidden, pairs, longest)
    weights = pull(train, get_loss("sigmoid"), BETA, margins_of(train, weight, reference))
    coefficients = torch.tensor([1.0, 0.0, -2.0, 3.0], dtype=torch.float64)  # of 2 pairs' responses
    expected = torch.zeros_like(weights)
    for pair in range(heldout.pairs):
        parts = contributions(train, heldout.select(torch.tensor([pair])), weight, weights, BETA).by_position.total
        expected += parts @ coefficients[2 * pair : 2 * pair + 2] / BETA
    ours = weights * along(train, [velocity(heldout, coefficients[heldout.response], weight)], weight)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


def test_blame_is_what_leaving_a_pair_out_gives_back() -> None:
    """One small step of gradient descent, with and without a pair: the falling responses gain what it is blamed for."""
    train, heldout, reference, _ = problem(11, 13, 6, 7, 5)
    pairs = make_pairs(9).pairs
    sets = PairSet(pairs[:7]), PairSet(pairs[7:])
    rate = 1e-4
    forecast = forecast_tokens(
        train,
        heldout,
        sets,
        reference,
        head_recipe(beta=BETA, optimizer=GradientDescent(rate), steps=1, max_grad_norm=0.0),
    )
    loss = get_loss("sigmoid", BETA)
    first, second = displacement(train, heldout, forecast, reference, loss)
    assert first.blame is not None and second.blame is None
    torch.testing.assert_close(first.forecast / rate, first.rates, rtol=1e-2, atol=1e-3)
    falls = torch.cat([first.forecast[:, 0] < 0, second.forecast[:, 0] < 0])
    assert bool(falls[:7].any()) and bool(falls[7:].any()), "of both splits, by the choice of the seed"
    for left_out in range(7):
        rest = train.select(torch.tensor([k for k in range(7) if k != left_out]))
        without = torch.cat([response_rates(rest, each, reference, loss, BETA)[:, 0] for each in (train, heldout)])
        before = torch.cat([first.rates[:, 0], second.rates[:, 0]])
        change = (before - without * 6 / 7)[falls].sum()  # rates are means over the pairs that are left
        torch.testing.assert_close(first.blame[left_out], change, rtol=1e-9, atol=1e-12)


def test_only_pairs_that_push_down_are_dropped_the_worst_first() -> None:
    train, heldout, reference, _ = problem(8, 13, 6, 7, 5)
    sets = PairSet(make_pairs(9).pairs[:7]), PairSet(make_pairs(9).pairs[7:])
    forecast = forecast_tokens(train, heldout, sets, reference, head_recipe(beta=BETA, steps=2, batch_size=4))
    result, _ = displacement(train, heldout, forecast, reference, get_loss("sigmoid", BETA))
    blamed = replace(result, blame=torch.tensor([0.5, -2.0, -1.0, 3.0, -3.0, 0.0, 1.0]))
    assert to_drop(blamed, 0.3) == [4, 1]
    assert to_drop(blamed, 0.9) == [4, 1, 2]
