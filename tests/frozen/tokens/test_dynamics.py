"""The full-matrix recursion against autodiff, against the single-token engine, and against real head training."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from margincast.features import features_of
from margincast.frozen.engine.step import simulate
from margincast.frozen.forecast import forecast_frozen
from margincast.frozen.tokens import TokenFeatures, forecast_tokens, token_features
from margincast.frozen.tokens.space import head_space
from margincast.models import LoadedModel
from margincast.passes.budgets import Budgets
from margincast.passes.growth import growth_of
from margincast.passes.tokenize import encode
from margincast.recipe.batches import Batch, batch_order
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.optimizers.flow import GradientFlow
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.recipe.recipe import Recipe
from margincast.records import PairSet, Trajectory
from margincast.training.run import train_model
from tests.frozen.tokens.test_decomposition import BETA, PROBLEMS, margins_of, problem
from tests.problems import make_pairs
from tests.recipes import head_recipe
from tests.tiny import tiny_model, tiny_tokenizer

SETTINGS = {
    "beta": 0.3,
    "max_steps": 7,
    "eval_steps": 3,
    "per_device_train_batch_size": 5,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "seed": 11,
}
WORDS = ("red", "a long evening", "tea", "the third of them", "maps and keys", "no")


def multi_token(count: int) -> PairSet:
    """Pairs whose responses have several tokens, ragged, with words in common."""
    pairs = make_pairs(count).pairs
    chosen = [f" {WORDS[k % 6]} {WORDS[(k + 1) % 6]}" for k in range(count)]
    rejected = [f" {WORDS[(k + 2) % 6]}" if k % 2 else f" {WORDS[k % 6]} {k}" for k in range(count)]
    return PairSet(tuple(replace(p, chosen=w, rejected=r) for p, w, r in zip(pairs, chosen, rejected, strict=True)))


@settings(deadline=None, max_examples=40)
@given(**PROBLEMS)
def test_the_gradient_is_autodiffs(seed: int, vocabulary: int, hidden: int, pairs: int, longest: int) -> None:
    train, _, reference, weight = problem(seed, vocabulary, hidden, pairs, longest)
    rows = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))[: (pairs + 1) // 2]
    shares = torch.rand(len(rows), dtype=torch.float64)
    moved = weight.clone().requires_grad_(True)
    ((get_loss("sigmoid").value(margins_of(train, moved, reference))[rows] * shares).sum()).backward()
    ours = head_space(train, reference, BETA).gradient(weight - reference, get_loss("sigmoid"), Batch(rows, shares))
    torch.testing.assert_close(ours, moved.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keep", [1, 100, 11 * 40], ids=["none", "some pairs", "all pairs"])
def test_how_much_softmax_is_kept_changes_nothing(keep: int) -> None:
    train, _, reference, weight = problem(3, 11, 5, 6, 7)
    batch = next(batch_order(6, 4, 1, 0))
    whole = head_space(train, reference, BETA).gradient(weight - reference, get_loss("sigmoid"), batch)
    budgets = Budgets(softmax_keep=keep, logit_block=23)
    space = head_space(train, reference, BETA, budgets=budgets)
    again = space.gradient(weight - reference, get_loss("sigmoid"), batch)
    torch.testing.assert_close(again, whole, rtol=1e-12, atol=1e-14)
    push, pushed = space.push(weight - reference, get_loss("sigmoid"), batch)
    torch.testing.assert_close(pushed, whole, rtol=1e-12, atol=1e-14)
    along = push.along([reference])
    torch.testing.assert_close(along.sum(1), (whole * reference).sum()[None])


@pytest.mark.parametrize("size", [1e-6, 1e-2, 3.0, 30.0, 300.0])
def test_the_growth_of_log_sum_exp_keeps_its_digits_in_float32(size: float) -> None:
    """Against float64, where changes are within float32's rounding, past where exp overflows, and between."""
    torch.manual_seed(0)
    logits, change = 10 * torch.randn(21, 500), size * (torch.randn(21, 500) + 1)
    logits[0, 0], change[0, 0] = 200.0, -size  # all probability is where the change is down
    exact = (logits.double() + change.double()).logsumexp(1) - logits.double().logsumexp(1)
    mean = (torch.softmax(logits.double(), 1) * change.double()).sum(1)
    centred = change.clone()
    growth = growth_of(logits, torch.softmax(logits, 1), centred)[:, 0]
    torch.testing.assert_close(growth.double(), exact - mean, rtol=2e-5, atol=1e-6 * size)
    torch.testing.assert_close(centred.double(), change.double() - mean[:, None], rtol=1e-5, atol=1e-6 * size)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel("tiny", "tiny", tiny_model("llama"), tiny_tokenizer())


def both(
    loaded: LoadedModel, pairs: PairSet, eos: bool, optimizer: str, folder: Path, **more: Any
) -> tuple[Trajectory, Trajectory]:
    """Forecast by the full matrix, and real training of the unembedding, with the same settings."""
    train, heldout = PairSet(pairs.pairs[:-6]), PairSet(pairs.pairs[-6:])
    encoding = encode(pairs, loaded.tokenizer, eos=eos)
    chosen = Recipe(train="head", optimizer=optimizer, **(SETTINGS | more))  # type: ignore[arg-type]
    features = token_features(loaded, encoding, train, heldout, cache_dir=folder / "cache")
    head = loaded.model.get_output_embeddings().weight
    ours = forecast_tokens(features[0], features[1], (train, heldout), head, chosen)
    copied = replace(loaded, model=copy.deepcopy(loaded.model))
    of_training = features_of(copied, encoding, train, heldout, cache_dir=folder / "cache")
    return ours, train_model(copied, encoding, of_training, chosen, folder / "run")


@pytest.mark.parametrize(
    "optimizer, more",
    [
        ("adamw", {"learning_rate": 1e-2, "weight_decay": 0.1}),
        ("sgd", {"learning_rate": 1.0, "momentum": 0.9, "nesterov": True, "max_grad_norm": 0.05}),
        ("gd", {"learning_rate": 1.0, "gradient_accumulation_steps": 1}),
        ("sgd", {"learning_rate": 3.0, "loss_type": "ipo"}),
        ("adamw", {"learning_rate": 1e-2, "loss_type": "simpo", "simpo_gamma": 0.2}),
    ],
)
def test_margins_and_rewards_are_those_of_head_training(
    optimizer: str, more: dict[str, Any], loaded: LoadedModel, tmp_path: Path
) -> None:
    ours, real = both(loaded, multi_token(26), True, optimizer, tmp_path, **more)
    assert ours.steps == real.steps == (0, 3, 6, 7)
    for mine, theirs in ((ours.train, real.train), (ours.heldout, real.heldout)):
        largest = float(theirs.margins.abs().max())
        assert largest > 0.05
        assert float((mine.margins - theirs.margins).abs().max()) <= 1e-4 * largest
        assert mine.chosen is not None
        assert theirs.chosen is not None
        assert float((mine.chosen - theirs.chosen).abs().max()) <= 1e-4 * float(theirs.chosen.abs().max())


def test_single_tokens_are_what_the_engine_says_without_the_full_matrix(loaded: LoadedModel, tmp_path: Path) -> None:
    pairs = make_pairs(20)
    train, heldout = PairSet(pairs.pairs[:-6]), PairSet(pairs.pairs[-6:])
    encoding = encode(pairs, loaded.tokenizer, eos=False)
    one = token_features(loaded, encoding, train, heldout, cache_dir=tmp_path)
    recipe = head_recipe(beta=0.3, optimizer=AdamW(1e-2), steps=6, batch_size=4, eval_steps=2)
    head = loaded.model.get_output_embeddings().weight
    full = forecast_tokens(one[0], one[1], (train, heldout), head, recipe)
    small = forecast_frozen(features_of(loaded, encoding, train, heldout, cache_dir=tmp_path), recipe)
    for mine, theirs in ((full.train, small.train), (full.heldout, small.heldout)):
        torch.testing.assert_close(mine.margins, theirs.margins, rtol=1e-5, atol=1e-6)
        assert mine.chosen is not None
        assert theirs.chosen is not None
        torch.testing.assert_close(mine.chosen, theirs.chosen, rtol=1e-4, atol=1e-5)


def flow(train: TokenFeatures, reference: torch.Tensor, rate: float, steps: int) -> torch.Tensor:
    none = PairSet(())
    run = forecast_tokens(
        train,
        train,
        (none, none),
        reference,
        head_recipe(beta=BETA, optimizer=GradientFlow(rate), steps=steps, eval_steps=steps),
    )
    return run.train.margins[-1]


def test_flow_is_the_limit_of_small_steps() -> None:
    train, _, reference, _ = problem(5, 9, 6, 5, 4)
    exact = flow(train, reference, 16.0 / 256, 256)
    # Its time is learning_rate * steps, however it is cut.
    assert float((flow(train, reference, 2.0, 8) - exact).abs().max()) <= 1e-7
    space = head_space(train, reference, BETA)
    small = simulate(space, GradientDescent(16.0 / 4000), whole(5, 4000), unembedding=reference)
    *_, last = small
    rewards = space.rewards(last)
    largest = float(exact.abs().max())
    assert largest > 0.1
    assert float((rewards[:, 0] - rewards[:, 1] - exact).abs().max()) <= 1e-3 * largest


def whole(pairs: int, steps: int) -> list[Batch]:
    return [Batch(torch.arange(pairs), torch.full((pairs,), 1.0 / pairs, dtype=torch.float64))] * steps
