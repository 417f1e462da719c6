"""Do the three forms of the state give the same numbers, and does the cost model choose sensibly?"""

from __future__ import annotations

import pytest
import torch

from margincast.errors import InputError
from margincast.frozen.engine.pairspace import choose_form, factor_space, pair_space, simulate_in
from margincast.recipe.batches import batch_order, full_batch
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.sgd import SGD
from tests.problems import random_space
from tests.recipes import sigmoid
from tests.tolerances import error

OPTIMIZERS = [SGD(0.5), SGD(0.3, momentum=0.9), SGD(0.3, momentum=0.5, nesterov=True)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("form", ["pair", "factor"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_forms_agree(form: str, optimizer: Optimizer, clip: float | None) -> None:
    space = random_space(12, 40, 5, 0.5, 0)
    for batches in (lambda: full_batch(12, 20), lambda: batch_order(12, 5, 20, 1, accumulation=2)):
        token, other = (
            list(simulate_in(f, space, optimizer, batches(), unembedding=space.zeros(), max_grad_norm=clip))
            for f in ("token", form)
        )
        assert error(torch.stack(other), torch.stack(token)) <= 1e-11


def test_kernel_margins_are_the_state_s() -> None:
    space = random_space(9, 30, 4, 0.5, 1)
    a = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert error(pair_space(space).margins(a), space.margins(space.pull(a))) <= 1e-13
    assert float(pair_space(space).norm(a)) == pytest.approx(float(space.pull(a).norm()), rel=1e-12)


def test_the_factor_drops_directions_that_are_not_there() -> None:
    space = random_space(20, 30, 3, 0.5, 2)
    space.features[:, :] = space.features[:, :4] @ torch.randn(4, 30, dtype=torch.float64)
    factor, basis = factor_space(space)
    assert factor.features.shape == (20, 4)
    assert error(factor.features @ basis.T, space.features) <= 1e-13


def test_the_choice() -> None:
    wide, tall = random_space(8, 4000, 16, 0.5, 3, torch.float32), random_space(400, 8, 2, 0.5, 3)
    assert choose_form(wide, SGD(0.1), 1000, 8, sigmoid) == "pair"
    assert choose_form(tall, SGD(0.1), 1000, 400, sigmoid) == "token"
    few_tokens = random_space(50, 4000, 2, 0.5, 3)
    assert choose_form(few_tokens, SGD(0.1), 1, 50, sigmoid) == "token"  # one step does not pay for the kernel
    assert choose_form(few_tokens, SGD(0.1), 100, 50, sigmoid) == "pair"
    assert choose_form(wide, AdamW(0.1), 1000, 8, sigmoid) == "token"  # divides entry by entry
    assert choose_form(wide, SGD(0.1, weight_decay=0.1), 1000, 8, sigmoid) == "token"
    assert choose_form(wide, SGD(0.1), 1000, 8, get_loss("simpo", without_reference=True)) == "token"


def test_bad_features_are_said() -> None:
    space = random_space(8, 40, 3, 0.5, 4)
    space.features[2, 0] = float("nan")
    with pytest.raises(InputError, match="pair 2"):
        next(simulate_in("pair", space, SGD(0.1), full_batch(8, 1), unembedding=space.zeros()))
    with pytest.raises(InputError, match="kernel of the pairs is not finite"):
        pair_space(space).check()
