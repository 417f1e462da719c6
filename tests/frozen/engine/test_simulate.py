"""The recursion on T x d numbers is what PyTorch does to a V x d head."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from margincast.errors import StatedFailure
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.recipe.batches import batch_order, full_batch
from margincast.recipe.optimizer import Optimizer
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.schedule import schedule
from tests.oracles import train_head
from tests.problems import random_space
from tests.tolerances import TOLERANCE, error

VOCABULARY, HIDDEN, TOKENS = 23, 6, 4
IDS = [2, 9, 10, 21]
STEPS = 25


def head(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 99)
    return (0.5 * torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)).to(dtype)


def both(
    ours: Optimizer,
    theirs: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    *,
    dtype: torch.dtype = torch.float64,
    beta: float = 0.5,
    seed: int = 0,
    clip: float | None = None,
    scheduler: str = "constant",
    warmup: int = 0,
    accumulation: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins of fresh pairs along the run, (steps, pairs): simulated, and trained by PyTorch."""
    train = random_space(13, HIDDEN, TOKENS, beta, seed, dtype)
    probe = random_space(5, HIDDEN, TOKENS, beta, seed + 1, dtype)
    weight = head(dtype, seed)
    states = simulate(
        train,
        ours,
        batch_order(len(train), 4, STEPS, seed, accumulation),
        unembedding=weight[IDS],
        factor=schedule(scheduler, STEPS, warmup),
        max_grad_norm=clip,
    )
    simulated = torch.stack([probe.margins(state) for state in states])
    trained, _ = train_head(
        weight,
        train,
        probe,
        IDS,
        batch_order(len(train), 4, STEPS, seed, accumulation),
        theirs,
        lambda optimizer: get_scheduler(scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS),
        clip,
    )
    return simulated, trained


CASES: dict[str, tuple[Optimizer, Any, dict[str, Any]]] = {
    "sgd": (SGD(0.5), lambda p: torch.optim.SGD(p, 0.5), {}),
    "adam": (AdamW(0.05), lambda p: torch.optim.Adam(p, 0.05), {}),
    "adamw": (AdamW(0.05, weight_decay=0.2), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.2), {}),
    "clipping": (SGD(0.5), lambda p: torch.optim.SGD(p, 0.5), {"clip": 0.05}),
    "clipping that never bites": (SGD(0.5), lambda p: torch.optim.SGD(p, 0.5), {"clip": 1e3}),
    "linear": (AdamW(0.05), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0), {"scheduler": "linear", "warmup": 5}),
    "cosine": (SGD(0.5), lambda p: torch.optim.SGD(p, 0.5), {"scheduler": "cosine", "warmup": 3}),
    "accumulation": (AdamW(0.05), lambda p: torch.optim.Adam(p, 0.05), {"accumulation": 3}),
    "everything": (
        AdamW(0.05, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
        {"scheduler": "linear", "warmup": 2, "accumulation": 2, "clip": 0.1},
    ),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_pytorch_on_the_whole_head(name: str, dtype: torch.dtype) -> None:
    ours, theirs, options = CASES[name]
    simulated, trained = both(ours, theirs, dtype=dtype, **options)
    assert error(simulated, trained) <= TOLERANCE[dtype].run
    assert float(trained[-1].abs().max()) > 0.05  # the run went somewhere


@given(beta=st.floats(0.01, 3.0), seed=st.integers(0, 1000), rate=st.floats(1e-3, 1.0))
@settings(max_examples=15)
def test_sgd_equals_pytorch_whatever_the_strength_and_rate(beta: float, seed: int, rate: float) -> None:
    simulated, trained = both(SGD(rate), lambda p: torch.optim.SGD(p, rate), beta=beta, seed=seed)
    assert error(simulated, trained) <= TOLERANCE[torch.float64].run


def test_full_batch_gradient_descent_equals_pytorch() -> None:
    train = random_space(9, HIDDEN, TOKENS, 0.5, 4)
    states = list(simulate(train, SGD(0.5), full_batch(9, STEPS), unembedding=head(torch.float64)[IDS]))
    trained, _ = train_head(
        head(torch.float64), train, train, IDS, full_batch(9, STEPS), lambda p: torch.optim.SGD(p, 0.5)
    )
    assert error(torch.stack([train.margins(s) for s in states]), trained) <= TOLERANCE[torch.float64].run


def test_the_order_of_pairs_in_memory_does_not_matter() -> None:
    train = random_space(8, HIDDEN, TOKENS, 0.5, 5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    runs = [
        list(simulate(space, AdamW(0.05), full_batch(8, 10), unembedding=train.zeros()))[-1]
        for space in (train, train.rows(order))
    ]
    assert error(runs[1], runs[0]) <= 1e-9  # Adam divides sums taken in another order


def test_yielded_states_are_not_overwritten_by_later_steps() -> None:
    train = random_space(8, HIDDEN, TOKENS, 0.5, 6)
    run = simulate(train, AdamW(0.05), full_batch(8, 5), unembedding=train.zeros())
    first = next(run)
    kept = first.clone()
    assert len(list(run)) == 4
    assert torch.equal(first, kept)


def test_stopping_early_gives_the_beginning_of_the_same_run() -> None:
    train = random_space(8, HIDDEN, TOKENS, 0.5, 7)

    def run(steps: int) -> list[torch.Tensor]:
        return list(simulate(train, AdamW(0.05), batch_order(8, 3, steps, 0), unembedding=train.zeros()))

    assert all(torch.equal(short, long) for short, long in zip(run(4), islice(run(9), 4), strict=True))


def test_a_run_that_diverges_says_so() -> None:
    train = TokenSpace(1e200 * torch.ones(2, 2).double(), torch.tensor([0, 1]), torch.tensor([1, 0]), 1e100, 2)
    with pytest.raises(StatedFailure, match="diverged at step 1; lower learning_rate"):
        list(simulate(train, SGD(1e300), batch_order(2, 1, 3, 0), unembedding=train.zeros()))
