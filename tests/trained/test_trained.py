"""Are the parts of the effective model what they say? Against PyTorch's AdamW, least squares, and a real run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from margincast.errors import InputError
from margincast.features import features_of
from margincast.frozen.engine.state import TokenSpace
from margincast.passes.tokenize import encode
from margincast.recipe.batches import batch_order
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.adamw import AdamW
from margincast.recipe.recipe import Recipe
from margincast.records import Pair, PairSet
from margincast.trained.amplitude import AmplitudeLaw
from margincast.trained.answers import _extrapolate
from margincast.trained.constants import package_constants
from margincast.trained.forecast import forecast_trained
from margincast.trained.growth import GrowthLaw
from margincast.trained.inputs import plan_of
from margincast.trained.laws import (
    Laws,
    PilotLaw,
    PilotMargins,
    Plan,
    Responses,
    ShapeLaw,
    effective_forecast,
    frozen_shape,
    shared_path,
)
from margincast.trained.noise import Noise, drawn_accuracies, drawn_runs, interval
from margincast.trained.offset import OffsetLaw, kinds_of, offset_path, parted
from margincast.trained.rehearsal import proportional_batches, rehearse, size_of
from margincast.trained.rehearsal_law import RehearsalLaw, levelled
from margincast.trained.shape import Spectrum, side_by_side, token_spectra
from margincast.trained.time import UNIT, learning_rates, merged
from margincast.training.run import train_model
from tests.problems import make_features
from tests.tiny import tiny_loaded
from tests.tolerances import TOLERANCE, error

RUN = TOLERANCE[torch.float64].run


def space(pairs: int, hidden: int, tokens: int, seed: int) -> TokenSpace:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(tokens, (pairs,), generator=generator)
    rejected = (chosen + 1 + torch.randint(tokens - 1, (pairs,), generator=generator)) % tokens
    features = torch.randn(pairs, hidden, generator=generator, dtype=torch.float64) + 2.0
    return TokenSpace(features, chosen, rejected, 0.1, tokens)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), tokens=st.integers(2, 4), batch=st.integers(1, 6))
def test_the_offset_is_adamw_on_one_logit_a_token(seed: int, tokens: int, batch: int) -> None:
    """PyTorch's AdamW, by autodiff, on logits that every prompt shares."""
    rate, learning_rate, beta, steps = 3.0, 0.1, 0.4, 12
    pairs = space(8, 2, tokens, seed)
    optimizer = AdamW(learning_rate, eps=1e-6)  # of gradients without their factor beta
    order = list(batch_order(8, batch, steps, seed))
    ours = offset_path(
        pairs.chosen, pairs.rejected, tokens, order, [learning_rate * UNIT] * steps, optimizer, get_loss("sigmoid"),
        beta, OffsetLaw(rate, 0.0),
    )  # fmt: skip
    logits = torch.zeros(tokens, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.AdamW([logits], lr=rate * learning_rate, eps=1e-6 * beta, weight_decay=0.0)
    for step, rows in enumerate(order):
        # Against steps of 0.3: where a batch is balanced all logits may be 0, which rounding is not.
        assert float((ours[step] - logits.detach()).abs().max()) <= RUN * rate
        margins = beta * (logits[pairs.chosen[rows.rows]] - logits[pairs.rejected[rows.rows]])
        theirs.zero_grad()
        (-logsigmoid(margins) * rows.weights).sum().backward()
        theirs.step()


@given(seed=st.integers(0, 1000), tokens=st.integers(2, 4))
def test_shapes_run_from_one_step_to_least_squares(seed: int, tokens: int) -> None:
    train, heldout = space(7, 30, tokens, seed), space(5, 30, tokens, seed + 1)
    mean = train.features.mean(0)

    def signed(part: TokenSpace) -> torch.Tensor:
        """delta (x) (g - mean), flattened: (pairs, tokens * hidden), by a loop."""
        rows = []
        for index in range(len(part)):
            row = torch.zeros(tokens, part.features.shape[1], dtype=torch.float64)
            row[part.chosen[index]] += part.features[index] - mean
            row[part.rejected[index]] -= part.features[index] - mean
            rows.append(row.flatten())
        return torch.stack(rows)

    step = signed(heldout) @ signed(train).sum(0)
    assume(float(step.abs().max()) > 1e-9)  # where all prefer the same token, centred features sum to rounding
    assert error(token_spectra(train, heldout)[0].shape(0.0, 1e-3), step) <= TOLERANCE[torch.float64].formula
    # With a ridge the least squares have one solution: rows of sqrt(ridge) below the features.
    left = signed(train)
    ridge = 1e-3
    small = torch.linalg.matrix_norm(left, 2) * ridge**0.5 * torch.eye(left.shape[1], dtype=torch.float64)
    target = torch.cat([torch.ones(len(left)), torch.zeros(left.shape[1])]).double()
    solution = torch.linalg.lstsq(torch.cat([left, small]), target[:, None]).solution[:, 0]
    assert error(token_spectra(train, heldout)[0].shape(1.0, ridge), signed(heldout) @ solution) <= 1e-8


def test_a_rehearsal_in_all_steps_is_the_run_itself(tmp_path: Path) -> None:
    """In as many steps, of all pairs, nothing is merged and no order matters."""
    pairs = PairSet(
        tuple(
            Pair(f"p:{i}", "c", f"The question number {i} is", *sides, "p", i + 1)
            for i in range(8)
            for sides in [(" Yes", " No") if i % 3 else (" No", " Yes")]
        )
    )
    train, heldout = PairSet(pairs.pairs[:5]), PairSet(pairs.pairs[5:])
    loaded = tiny_loaded()
    encoding = encode(pairs, loaded.tokenizer, eos=False)
    features = features_of(loaded, encoding, train, heldout, cache_dir=tmp_path / "cache")
    how = Recipe(
        beta=0.1, learning_rate=1e-3, max_steps=4, per_device_train_batch_size=5, eval_steps=2,
        lr_scheduler_type="linear", max_grad_norm=0.5,
    )  # fmt: skip
    before = next(iter(loaded.model.parameters())).clone()
    ours = rehearse(loaded, encoding, features, how, 4, 5)
    assert bool((next(iter(loaded.model.parameters())) == before).all())
    real = train_model(loaded, encoding, features, how, tmp_path / "run", save_model=False)
    assert ours.pairs == 5
    assert error(ours.heldout, real.heldout.margins[-1]) <= TOLERANCE[torch.float32].run
    with pytest.raises(InputError, match="at least 2 steps"):
        rehearse(loaded, encoding, features, how, 1, 5)
    with pytest.raises(InputError, match="adamw or adam"):
        rehearse(loaded, encoding, features, replace(how, optimizer="sgd"), 4, 5)


@given(batch=st.integers(1, 300), steps=st.integers(2, 300), share=st.floats(0.01, 1.0))
def test_a_rehearsal_takes_its_share(batch: int, steps: int, share: float) -> None:
    how = Recipe(max_steps=steps, per_device_train_batch_size=batch)
    count, size = size_of(how, share)
    assert 2 <= count <= max(2, steps)
    assert size == batch or size >= 8
    assert count * size <= max(2 * batch, 4 * batch, (round(share * steps)) * batch)


@given(steps=st.integers(1, 30), total=st.integers(30, 60), name=st.sampled_from(["constant", "linear", "cosine"]))
def test_merged_steps_go_as_far(steps: int, total: int, name: str) -> None:
    rates = learning_rates(Recipe(learning_rate=0.5, lr_scheduler_type=name, max_steps=total))
    assert len(merged(rates, steps)) == steps
    assert sum(merged(rates, steps)) == pytest.approx(sum(rates))


@given(seed=st.integers(0, 100), size=st.integers(4, 9))
def test_batches_hold_every_concept_in_proportion(seed: int, size: int) -> None:
    hidden = torch.zeros(20, 3, dtype=torch.float64)
    answers = torch.arange(20) // 2 % 2
    features = make_features(torch.zeros(2, 3, dtype=torch.float64), hidden, answers, 1 - answers, heldout=2).train
    batches = proportional_batches(features, size, 6, seed)
    keys = [(pair.concept, features.chosen_ids[i], features.rejected_ids[i]) for i, pair in enumerate(features.pairs)]
    for end in range(1, 7):
        drawn = [keys[row] for batch in batches[:end] for row in batch]
        for key in set(keys):
            assert abs(drawn.count(key) - len(drawn) * keys.count(key) / len(keys)) <= len(set(keys))


@given(seed=st.integers(0, 1000), tokens=st.integers(2, 4), names=st.integers(1, 3))
def test_a_shift_of_tokens_is_taken_out(seed: int, tokens: int, names: int) -> None:
    """Adding logits that all pairs share, and such of every concept, changes the shifts and not the rest."""
    pairs = space(60, 2, tokens, seed)
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.arange(60) % names
    kinds = kinds_of(pairs.chosen, pairs.rejected), kinds_of(pairs.chosen, pairs.rejected, concepts)
    margins = torch.randn(3, 60, generator=generator, dtype=torch.float64)
    logits = 10.0 * torch.randn(names, tokens, generator=generator, dtype=torch.float64)
    moved = margins + logits[concepts, pairs.chosen] - logits[concepts, pairs.rejected]
    # Pairs of tokens of which one is always preferred in the concept keep what they have.
    both = sum(kind.sign.abs() for kind in kinds[1]) > 0
    parts, again = parted(margins, *kinds), parted(moved, *kinds)
    assert error(parts.rest + parts.shift, margins) <= TOLERANCE[torch.float64].formula
    assert error(again.rest[:, both], parts.rest[:, both]) <= 1e-10
    for kind in kinds[1]:
        assert float(parts.rest[:, kind.up].mean()) == pytest.approx(float(parts.rest[:, kind.down].mean()), abs=1e-9)


@given(end=st.floats(0.1, 200.0), power=st.floats(1.0, 3.0), slowing=st.floats(-0.3, 0.0))
def test_growth_ends_at_its_end(end: float, power: float, slowing: float) -> None:
    x = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    factors = GrowthLaw(power, slowing).factors(x, end)
    assert float(factors[0]) == 0.0
    assert float(factors[-1]) == 1.0
    assert bool((factors.diff() > 0).all())


LAWS = Laws(
    OffsetLaw(0.3, 0.1, 0.5), AmplitudeLaw(0.1, 2.0, 0.2, -0.5, 0.5), GrowthLaw(2.0, 0.0), ShapeLaw(0.2, 0.1, 1e-3),
    RehearsalLaw(AmplitudeLaw(3.0, 0.0, 0.2, -0.5, 2.0), 0.5, 4.0, 8.0, 0.5, 1.0), PilotLaw(1.0, 1.0, 1.0),
    Noise(0.3, 0.1, 0.2, 0.5, 0.7, 0.2, 0.3, 0.4, 1.0, 0.5, 0.5),
)  # fmt: skip


def problem(lora: bool = False) -> tuple[TokenSpace, TokenSpace, Responses, Plan]:
    train, heldout = space(30, 6, 2, 1), space(20, 6, 2, 2)
    plan = Plan((UNIT,) * 10, tuple(batch_order(30, 5, 10, 0)), AdamW(UNIT), get_loss("sigmoid"), lora)
    return train, heldout, Responses(heldout.chosen, heldout.rejected, torch.arange(20) % 2), plan


def test_intervals_hold_their_share_of_runs() -> None:
    """Runs made as the noise says fall into the interval as often as it promises, at every step."""
    _, _, who, _ = problem()
    who = Responses(who.chosen.repeat(5), who.rejected.repeat(5), who.concepts.repeat(5))
    generator = torch.Generator().manual_seed(3)
    rest = (1.0 + torch.randn(100, generator=generator, dtype=torch.float64)) * torch.tensor([[0.0], [2.0], [9.0]])
    lengths = torch.tensor([0.0, 3.0, 10.0], dtype=torch.float64)

    def runs(seed: int) -> list[torch.Tensor]:
        return list(drawn_runs(rest, torch.zeros_like(rest), lengths, who.concepts, who.kinds, LAWS.noise, seed))

    for told, true in list(zip(runs(0), runs(1), strict=True))[1:]:
        span, truth = interval(told.mean(1)), true.mean(1)
        assert 0.85 <= float(((truth >= span.low) & (truth <= span.high)).double().mean()) <= 0.95
    assert bool((runs(0)[0] == 0.0).all())


def test_accuracies_are_missed_by_what_the_noise_says() -> None:
    """By standard deviation at every step, alike in concepts as far as `common` has it; and nothing at step 0."""
    told = torch.tensor([[0.0, 0.0], [0.5, 0.6], [0.6, 0.7]], dtype=torch.float64)
    x, noise = torch.tensor([0.0, 0.5, 1.0]), replace(LAWS.noise, accuracy=0.1, accuracy_early=0.1)
    draws = drawn_accuracies(told, torch.tensor([30, 10]), x, noise)
    assert bool((draws[:, 0] == 0.0).all())
    expected = torch.tensor([[0.15], [0.1]]) * (told[1:] * (1 - told[1:])).sqrt()
    assert draws[:, 1:, :2].std(0).tolist() == [pytest.approx(row, rel=0.1) for row in expected.tolist()]
    assert float(torch.corrcoef(draws[:, 2, :2].T)[0, 1]) == pytest.approx(0.4, abs=0.1)
    assert error(draws[..., 2], 0.75 * draws[..., 0] + 0.25 * draws[..., 1]) <= 1e-12
    sure = drawn_accuracies(torch.ones(1, 1, dtype=torch.float64), torch.tensor([5]), torch.ones(1), noise)
    assert 0.95 < float(sure.min()) < float(sure.max()) == 1.0


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), pairs=st.integers(1, 12), concepts=st.integers(1, 3))
def test_levels_are_those_of_another_shape_and_the_order_is_kept(seed: int, pairs: int, concepts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape, level = torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    of = torch.arange(pairs) % concepts
    moved = levelled(shape, level, of)
    for concept in of.unique():
        rows = of == concept
        if int(rows.sum()) > 1:  # of one pair no step is known
            assert int((moved[rows] > 0).sum()) == int((level[rows] > 0).sum())
        gaps = moved[rows] - shape[rows]
        assert error(gaps, gaps[0].expand_as(gaps)) <= 1e-12


def test_without_noise_every_run_is_the_forecast() -> None:
    _, _, who, _ = problem()
    quiet = Noise(0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5)
    rest, shift = torch.rand(2, 2, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lengths = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for step, draws in enumerate(drawn_runs(rest, shift, lengths, who.concepts, who.kinds, quiet)):
        assert error(draws, (rest + shift)[step].expand_as(draws)) <= 1e-12


def test_the_forecast_is_offset_and_scaled_shape() -> None:
    """Its mean is the amplitude, and as many pairs are learned as the frozen shape has it, whatever offsets are."""
    train, heldout, who, plan = problem()
    path = shared_path(train, who, plan, LAWS.offset)
    features = token_spectra(train, heldout)[0]
    made = effective_forecast(features, path, who, plan, replace(LAWS, rehearsal=None))
    fading = torch.linspace(1.0, 0.5, 11, dtype=torch.float64)[:, None]
    assert error(made.shift, fading * path) <= 1e-12
    end = (made.rest + made.shift)[-1]
    size = 0.1 * 10.0**2 * 50**0.2 * sigma(features, who) ** -0.5
    assert float(end.mean()) == pytest.approx(size + float(made.shift[-1].mean()))
    assert learned(end, who) == learned(frozen_shape(features, who, LAWS.shape, size), who)
    growth = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)[:, None] ** 2
    assert error(made.rest, growth * made.rest[-1]) <= 1e-12


def sigma(features: Spectrum, who: Responses) -> float:
    """The relative spread of h(0.6) without offsets."""
    shape = who.part(features.shape(0.6, 1e-3)).rest
    return float((shape / shape.mean()).std(correction=0))


def test_a_rehearsal_that_got_far_decides_on_order_and_one_that_got_nowhere_on_nothing() -> None:
    train, heldout, who, plan = problem()
    path, features = shared_path(train, who, plan, LAWS.offset), token_spectra(train, heldout)[0]
    rehearsed = (2.0 + torch.randn(20, generator=torch.Generator().manual_seed(8), dtype=torch.float64)) * 1e6
    parts = who.part(rehearsed)
    told = effective_forecast(features, path, who, plan, LAWS, rehearsed)
    factor = 3.0 * 50**0.2 * sigma(features, who) ** -0.5
    size = factor * (float(parts.rest.mean()) + 2.0) ** 0.5
    end = (told.rest + told.shift)[-1]
    assert float(end.mean()) == pytest.approx(size + float(told.shift[-1].mean()), rel=1e-4)
    assert error(told.shift[-1], 0.5 * path[-1] + 0.5 * parts.shared_offset + parts.concept_offset) <= 1e-4
    assert learned(end, who) == learned(parts.rest, who)
    nothing = effective_forecast(features, path, who, plan, LAWS, 1e-9 * rehearsed / 1e6)
    by_features = replace(LAWS, amplitude=AmplitudeLaw(factor * 2.0**0.5, 0.0, 0.0, 0.0, 1.0), rehearsal=None)
    alone = effective_forecast(features, path, who, plan, by_features)
    assert error(nothing.rest, alone.rest) <= 1e-4


@given(scale=st.floats(0.1, 1e6))
def test_a_rehearsal_orders_pairs_however_large_its_margins(scale: float) -> None:
    """Half of its order and half of the frozen one, in units of how far pairs are apart, where it counts one half."""
    generator = torch.Generator().manual_seed(8)
    rehearsed, frozen = (1.0 + torch.randn(2, 40, generator=generator, dtype=torch.float64)).unbind()
    concepts = torch.zeros(40, dtype=torch.long)
    law = replace(LAWS.rehearsal, order_nats=scale * float(rehearsed.mean()))
    order, _ = law.mixed(scale * rehearsed, frozen, concepts)
    wanted = rehearsed / rehearsed.std(correction=0) + frozen / frozen.std(correction=0)
    assert error(order, wanted / wanted.mean()) <= 1e-9


@pytest.mark.parametrize("rehearsed", [False, True])
def test_one_heldout_pair_is_forecast_too(rehearsed: bool) -> None:
    train, heldout, _, plan = problem()
    one = heldout.rows(torch.tensor([3]))
    who = Responses(one.chosen, one.rejected, torch.zeros(1, dtype=torch.long))
    told = torch.tensor([2.0], dtype=torch.float64) if rehearsed else None
    path = shared_path(train, who, plan, LAWS.offset)
    laws = LAWS if rehearsed else replace(LAWS, rehearsal=None)
    made = effective_forecast(token_spectra(train, one)[0], path, who, plan, laws, told)
    assert bool(made.rest.isfinite().all()) and float(made.rest[-1]) != 0.0


def test_pairs_that_training_does_not_take_teach_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    hidden, layers = torch.randn(60, 8, generator=generator), torch.randn(60, 2, 8, generator=generator)
    chosen = torch.randint(2, (60,), generator=generator)
    features = make_features(torch.randn(2, 8, generator=generator), hidden, chosen, 1 - chosen, 20)
    settings = Recipe(train="all", beta=0.1, max_steps=5, per_device_train_batch_size=4, eval_steps=5)
    taken = plan_of(settings, 40).taken
    others = torch.tensor([row for row in range(40) if row not in taken.tolist()])
    assert len(taken) == len(others) == 20

    def margins(rows: torch.Tensor) -> torch.Tensor:
        """Of the forecast, where inner layers say other things of `rows`."""
        inner = layers[:40].clone()
        inner[rows] = torch.randn(len(rows), 2, 8, generator=torch.Generator().manual_seed(5))
        split = replace(features.train, layers=inner), replace(features.heldout, layers=layers[40:])
        known = replace(features, train=split[0], heldout=split[1])
        return forecast_trained(known, settings).heldout.margins[-1]

    nothing = torch.zeros(0, dtype=torch.long)
    assert error(margins(others), margins(nothing)) <= 1e-9
    assert error(margins(taken), margins(nothing)) > 0.01


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_no_pair_is_heard_more_for_being_far_from_the_mean(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    train, heldout = torch.randn(2, 7, 3, 5, generator=generator, dtype=torch.float64)
    mean = train.mean(0)
    (one,), (other,) = side_by_side(train, heldout), side_by_side(train, mean + scale * (heldout - mean))
    assert error(other, one) <= 1e-9
    assert error(one.square().sum(1), torch.full((7,), 3.0, dtype=torch.float64)) <= 1e-9


def learned(margins: torch.Tensor, who: Responses) -> list[int]:
    return [int((margins[who.concepts == concept] > 0).sum()) for concept in (0, 1)]


def test_what_a_rehearsal_must_reach_for_an_end_is_what_reaches_it() -> None:
    law = package_constants().laws(with_rehearsal=True).rehearsal
    assert law is not None
    for amplitude in (1.0, 8.0):
        assert law.at(law.needed(20.0, amplitude), amplitude) == pytest.approx(20.0)


def test_a_pilot_as_long_as_the_run_is_the_run() -> None:
    train, heldout, who, plan = problem()
    path = shared_path(train, who, plan, LAWS.offset)
    margins = 5.0 + torch.randn(20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    told = effective_forecast(
        token_spectra(train, heldout)[0], path, who, plan, replace(LAWS, rehearsal=None),
        pilot_margins=PilotMargins(margins, 10),
    )  # fmt: skip
    assert error((told.rest + told.shift)[-1], margins) <= 1e-12


def test_an_adapter_has_its_own_size() -> None:
    law = LAWS.amplitude
    assert law.at(10.0, 8, 0.1, lora=True) == pytest.approx(0.5 * law.at(10.0, 8, 0.1, lora=False))
    train, _, who, plan = problem(lora=True)
    assert bool((shared_path(train, who, plan, LAWS.offset) == 0).all())


def test_more_pairs_are_told_from_where_the_data_are() -> None:
    """On a power law its own continuation; on noise never less than now where the curve still rises."""
    counts = [100, 200, 400, 800]
    exact = [0.9 - 0.2 * (count / 800) ** -0.5 for count in counts]
    doubled, limit = _extrapolate(counts, exact)
    assert doubled == pytest.approx(0.9 - 0.2 * 2**-0.5, abs=1e-3)
    assert limit == pytest.approx(0.9, abs=5e-3)
    doubled, limit = _extrapolate(counts, [0.6, 0.7, 0.69, 0.77])
    assert limit is not None
    assert 0.77 <= doubled <= limit
