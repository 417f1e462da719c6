"""The kernel of sequence margins against gradients made by autodiff, and what holding it still is worth."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from torch import Tensor

from margincast.frozen.engine.step import simulate
from margincast.frozen.tokens import TokenFeatures, linearised_margins, sequence_kernel
from margincast.frozen.tokens.space import head_space
from margincast.recipe.batches import batch_order
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.sgd import SGD
from tests.frozen.tokens.test_decomposition import BETA, PROBLEMS, logps, problem


def gradients(features: TokenFeatures, weight: Tensor) -> Tensor:
    """(pairs, V d): M_i of every pair, from autodiff."""
    weight = weight.clone().requires_grad_(True)
    sums = features.per_response(logps(features, weight))
    rows = [torch.autograd.grad(m, weight, retain_graph=True)[0].flatten() for m in sums[:, 0] - sums[:, 1]]
    return torch.stack(rows)


@settings(deadline=None, max_examples=40)
@given(**PROBLEMS)
def test_the_kernel_is_the_product_of_autodiffs_gradients(
    seed: int, vocabulary: int, hidden: int, pairs: int, longest: int
) -> None:
    train, heldout, _, weight = problem(seed, vocabulary, hidden, pairs, longest)
    exact = gradients(heldout, weight) @ gradients(train, weight).T
    size = float(train.hidden.norm(dim=1).max() * heldout.hidden.norm(dim=1).max()) * longest**2
    torch.testing.assert_close(sequence_kernel(heldout, train, weight), exact, rtol=1e-9, atol=1e-12 * max(1.0, size))


def test_small_steps_are_linear_and_larger_ones_depart_by_the_square() -> None:
    """Halving the learning rate quarters the difference from the exact recursion."""
    train, heldout, reference, _ = problem(4, 11, 6, 6, 5)
    kernels = sequence_kernel(train, train, reference), sequence_kernel(heldout, train, reference)
    loss, gaps = get_loss("sigmoid", BETA), []
    for rate in (0.02, 0.01):
        order = list(batch_order(6, 4, 5, 0))
        ours = linearised_margins(*kernels, SGD(rate, momentum=0.5), order, loss, BETA)
        space, others = head_space(train, reference, BETA), head_space(heldout, reference, BETA)
        *_, last = simulate(space, SGD(rate, momentum=0.5), order, unembedding=reference, loss=loss)
        gap = 0.0
        for each, margins in zip((space, others), ours, strict=True):
            rewards = each.rewards(last)
            exact = rewards[:, 0] - rewards[:, 1]
            assert float((margins[-1] - exact).abs().max()) <= 0.1 * float(exact.abs().max())
            gap = max(gap, float((margins[-1] - exact).abs().max()))
        gaps.append(gap)
    assert 3.3 < gaps[0] / gaps[1] < 4.7
