"""Are the parts of the effective model what they say? Against PyTorch's AdamW, least squares, and a real run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from margincast.dynamics.batches import batch_order
from margincast.dynamics.optimizers import AdamW
from margincast.dynamics.state import TokenSpace
from margincast.effective.amplitude import AmplitudeLaw, fit_amplitude, signal_share
from margincast.effective.laws import Laws, Plan, effective_forecast
from margincast.effective.noise import Noise, accuracies, drawn_margins, interval
from margincast.effective.offset import OffsetLaw, offset_path, without_offset
from margincast.effective.rehearsal import proportional_batches, rehearse
from margincast.effective.shape import spectral_shape
from margincast.effective.time import UNIT, learning_rates, merged
from margincast.errors import InputError
from margincast.features import encode, features_of
from margincast.losses import get_loss
from margincast.records import Pair, PairSet
from margincast.training import TrainingSettings, train_model
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
    assert error(spectral_shape(train, heldout, 0.0, 1e-3), step) <= TOLERANCE[torch.float64].formula
    # With a ridge the least squares have one solution: rows of sqrt(ridge) below the features.
    left = signed(train)
    ridge = 1e-3
    small = torch.linalg.matrix_norm(left, 2) * ridge**0.5 * torch.eye(left.shape[1], dtype=torch.float64)
    target = torch.cat([torch.ones(len(left)), torch.zeros(left.shape[1])]).double()
    solution = torch.linalg.lstsq(torch.cat([left, small]), target[:, None]).solution[:, 0]
    assert error(spectral_shape(train, heldout, 1.0, ridge), signed(heldout) @ solution) <= 1e-8


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
    how = TrainingSettings(
        beta=0.1, learning_rate=1e-3, max_steps=4, per_device_train_batch_size=5, eval_steps=2,
        lr_scheduler_type="linear", max_grad_norm=0.5,
    )  # fmt: skip
    before = next(iter(loaded.model.parameters())).clone()
    ours = rehearse(loaded, encoding, features, how, 4)
    assert bool((next(iter(loaded.model.parameters())) == before).all())
    real = train_model(loaded, encoding, features, how, tmp_path / "run", save_model=False)
    assert ours.steps == (2, 4)
    assert error(ours.heldout, real.heldout.margins[1:]) <= TOLERANCE[torch.float32].run
    with pytest.raises(InputError, match="from 2 to max_steps = 4"):
        rehearse(loaded, encoding, features, how, 5)
    with pytest.raises(InputError, match="adamw or adam"):
        rehearse(loaded, encoding, features, replace(how, optimizer="sgd"), 4)


@given(steps=st.integers(1, 30), total=st.integers(30, 60), name=st.sampled_from(["constant", "linear", "cosine"]))
def test_merged_steps_go_as_far(steps: int, total: int, name: str) -> None:
    rates = learning_rates(0.5, name, total)
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


@given(seed=st.integers(0, 1000), tokens=st.integers(2, 4))
def test_a_shift_of_tokens_is_taken_out(seed: int, tokens: int) -> None:
    """Adding any shared logits to margins changes the shift, and not the rest."""
    pairs = space(40, 2, tokens, seed)
    generator = torch.Generator().manual_seed(seed)
    margins = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    logits = 10.0 * torch.randn(tokens, generator=generator, dtype=torch.float64)
    moved = margins + logits[pairs.chosen] - logits[pairs.rejected]
    # Pairs of tokens of which one is always preferred keep what they have.
    kinds = list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
    both = torch.tensor([(second, first) in kinds for first, second in kinds])
    rest, shift = without_offset(margins, pairs.chosen, pairs.rejected)
    again, _ = without_offset(moved, pairs.chosen, pairs.rejected)
    assert error(rest + shift, margins) <= TOLERANCE[torch.float64].formula
    assert error(again[:, both], rest[:, both]) <= 1e-10
    assert bool((shift[:, ~both] == 0).all())


@given(seed=st.integers(0, 1000), tokens=st.integers(2, 4))
def test_signal_share_is_a_mean_over_pairs_of_pairs(seed: int, tokens: int) -> None:
    pairs = space(9, 4, tokens, seed)
    centred = replace(pairs, features=pairs.features - pairs.features.mean(0))
    kernel = centred.kernel(centred)
    others = [float(kernel[i, j]) for i in range(9) for j in range(9) if i != j]
    expected = sum(others) / len(others) / float(kernel.diagonal().mean())
    assert signal_share(pairs) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_power_law_is_found_again_and_held_by_its_prior() -> None:
    law = AmplitudeLaw(0.02, 1.7, 0.4, 0.6, 0.0)
    lengths, batches, signals = [10.0, 20.0, 40.0, 60.0, 25.0], [8, 16, 8, 32, 16], [0.1, 0.2, 0.05, 0.3, 0.02]
    amplitudes = [law.at(*run) for run in zip(lengths, batches, signals, strict=True)]
    found = fit_amplitude(lengths, batches, signals, amplitudes, AmplitudeLaw(1.0, 3.0, 1.0, 1.0, 0.3), runs=0.0)
    assert (found.scale, found.length, found.batch, found.signal) == pytest.approx((0.02, 1.7, 0.4, 0.6))
    assert found.spread == pytest.approx(0.0, abs=1e-9)
    held = fit_amplitude([40.0], [8], [0.1], [19.0], law, runs=1.0)
    assert (held.length, held.batch, held.signal) == pytest.approx((1.7, 0.4, 0.6))
    assert held.at(40.0, 8, 0.1) == pytest.approx(19.0)


def test_intervals_hold_their_share_of_runs() -> None:
    """Runs made as the noise says fall into the interval as often as it promises."""
    noise = Noise(0.3, 0.2, 0.5)
    generator = torch.Generator().manual_seed(3)
    rest = 1.0 + torch.randn(100, generator=generator, dtype=torch.float64)
    sign = torch.where(torch.arange(100) % 2 == 0, 1.0, -1.0).double()
    draws = drawn_margins(rest, torch.zeros(100), sign, noise)
    runs = drawn_margins(rest, torch.zeros(100), sign, noise, seed=1)
    span, truth = interval(0.0, accuracies(draws, range(100))), accuracies(runs, range(100))
    assert 0.85 <= float(((truth >= span.low) & (truth <= span.high)).double().mean()) <= 0.95
    span = interval(0.0, draws.mean(1))
    assert 0.85 <= float(((runs.mean(1) >= span.low) & (runs.mean(1) <= span.high)).double().mean()) <= 0.95


def test_the_forecast_is_offset_and_scaled_shape() -> None:
    """Its mean without the offset is the amplitude at every step, or the rehearsal's at the end; its shape, the one."""
    train, heldout = space(30, 6, 2, 1), space(20, 6, 2, 2)
    law = AmplitudeLaw(0.1, 2.0, 0.0, 0.0, 0.1)
    laws = Laws(OffsetLaw(0.3, 0.1), law, 0.0, 1e-3, rehearsed=1.5, trust=1.0)
    plan = Plan((UNIT,) * 10, tuple(batch_order(30, 5, 10, 0)), AdamW(UNIT), get_loss("sigmoid"))
    made = effective_forecast(train, heldout, plan, laws)
    assert made.rest.mean(1).abs().tolist() == pytest.approx([law.at(step, 5, 1.0) for step in range(11)], abs=1e-12)
    assert bool((made.shift[0] == 0).all())
    sign = torch.where(heldout.chosen == 1, 1.0, -1.0)
    assert error(made.shift * sign, (made.shift * sign)[:, :1].expand_as(made.shift)) <= 1e-12
    rehearsed = torch.linspace(-1.0, 3.0, 20, dtype=torch.float64)
    told = effective_forecast(train, heldout, plan, laws, rehearsed)
    rest, _ = without_offset(rehearsed, heldout.chosen, heldout.rejected)
    assert error(told.rest[-1], 1.5 * rest) <= 1e-12
