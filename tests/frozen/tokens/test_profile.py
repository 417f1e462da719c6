"""Rewards by token, turn and length: token sums against autodiff's softmax, slopes against numpy and a bootstrap."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import margincast as mc
from margincast.frozen.engine.step import simulate
from margincast.frozen.tokens.profile import RewardProfile, SplitProfile
from margincast.frozen.tokens.space import head_space
from margincast.intervals import clustered_slope
from margincast.records import PairSet
from margincast.report.profile import NAMES, WON, profile_results, profile_rows
from margincast.report.sections import page_of, read_summary
from tests.frozen.tokens.test_decomposition import BETA, logps, problem
from tests.frozen.tokens.test_dynamics import multi_token
from tests.problems import make_pairs
from tests.recipes import head_recipe
from tests.tiny import tiny_loaded


def test_rewards_of_tokens_are_those_of_the_weights_at_the_end_and_add_up_to_the_margin() -> None:
    train, _, reference, _ = problem(4, 11, 5, 6, 7)
    pairs = make_pairs(6)
    recipe = head_recipe(beta=BETA, steps=5, batch_size=4, learning_rate=0.1)
    forecast = mc.forecast_tokens(train, train, (pairs, pairs), reference, recipe)
    *_, moved = simulate(
        head_space(train, reference, BETA), recipe.rule, recipe.batches(6), unembedding=reference, loss=recipe.loss,
        factor=recipe.factor, max_grad_norm=recipe.max_grad_norm,
    )  # fmt: skip
    profile = forecast.reward_profile().heldout
    expected = BETA * (logps(train, reference + moved) - logps(train, reference))
    torch.testing.assert_close(profile.rewards, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(profile.margins, forecast.heldout.margins[-1], rtol=1e-9, atol=1e-12)
    # The first k tokens of both responses, one pair at a time.
    for k in range(6):
        sides = [profile.rewards[train.response == 2 * k + side] for side in (0, 1)]
        carried = [float(sides[0][:n].sum() - sides[1][:n].sum()) for n in range(1, 8)]
        torch.testing.assert_close(
            profile.shares[k, : len(carried)], torch.tensor(carried).double()[: profile.shares.shape[1]] / carried[-1]
        )
        first = next(n for n, value in enumerate(carried, start=1) if value / carried[-1] >= 0.7)
        assert int(profile.tokens_for(0.7)[k]) == first


def drawn(pairs: int, seed: int) -> SplitProfile:
    """Rewards of -0.02 a token, 0.3 more for chosen ones, and what the responses of a pair have in common."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 30, (2 * pairs,), generator=generator)
    response = torch.repeat_interleave(torch.arange(2 * pairs), lengths)
    common = torch.randn(pairs, generator=generator).double().repeat_interleave(2) / 2
    total = common + 0.3 * torch.randn(2 * pairs, generator=generator) - 0.02 * lengths
    total[::2] += 0.3
    return SplitProfile(make_pairs(pairs), (total / lengths)[response], response, None)


def test_slopes_are_least_squares_with_errors_that_resampling_pairs_gives() -> None:
    profile = drawn(400, 0)
    x, y = profile.lengths.double().numpy(), profile.by_response.numpy()
    for side, columns in ((None, slice(None)), ("chosen", slice(0, 1)), ("rejected", slice(1, 2))):
        found = profile.slope(side)  # type: ignore[arg-type]

        def fitted(rows: np.ndarray, columns: slice = columns) -> float:
            lengths = x[rows][:, columns]
            sides = np.tile(np.eye(lengths.shape[1]), (len(lengths), 1))  # an intercept for each
            design = np.column_stack([sides, lengths.ravel()])
            return float(np.linalg.lstsq(design, y[rows][:, columns].ravel(), rcond=None)[0][-1])

        assert found.value == pytest.approx(fitted(np.arange(400)), rel=1e-9)
        draws = np.random.default_rng(0)
        spread = np.std([fitted(draws.integers(400, size=400)) for _ in range(800)])
        assert found.error == pytest.approx(spread, rel=0.12)
    # The same responses again are no news where they are of the same pair, and are where they pass for other pairs.
    once = profile.slope().error
    again = [torch.cat([each, each], dim=1) for each in (profile.lengths.double(), profile.by_response)]
    others = [torch.cat([each, each]) for each in (profile.lengths.double(), profile.by_response)]
    assert clustered_slope(*again).error == pytest.approx(once, rel=2e-3)
    assert clustered_slope(*others).error == pytest.approx(once / np.sqrt(2), rel=2e-3)


def test_length_controlled_margins_are_margins_less_what_the_slope_gives_the_longer_response() -> None:
    profile = drawn(60, 1)
    lengths = profile.lengths.double()
    by_length = profile.slope().value * (lengths[:, 0] - lengths[:, 1])
    torch.testing.assert_close(profile.length_controlled + by_length, profile.margins)
    won = [m > 0 >= c for m, c in zip(profile.margins.tolist(), profile.length_controlled.tolist(), strict=True)]
    assert any(won) and profile.won_by_length.tolist() == won
    same = torch.arange(8).repeat_interleave(3)
    level = SplitProfile(make_pairs(4), torch.randn(24).double(), same, None)
    assert np.isnan(level.slope().value)
    torch.testing.assert_close(level.length_controlled, level.margins)
    # Within a side all lengths are the same, and between the sides not: nothing is known of what length does.
    response = torch.tensor([0, 0, 1, 2, 2, 3, 4, 4, 5])
    unknown = SplitProfile(make_pairs(3), torch.randn(9).double(), response, None)
    shown = dict(row[::2] for row in profile_rows(profile_results(RewardProfile(profile, unknown, "made", 1))))
    assert [shown[name] for name in (NAMES["slope"], NAMES[WON], NAMES["length_controlled_margin"])] == ["-"] * 3


def turned() -> PairSet:
    """Responses of three messages each, and pairs of one."""

    def say(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    pairs = []
    for k, pair in enumerate(multi_token(12)):
        chosen, rejected = (say("assistant", str(side)) for side in (pair.chosen, pair.rejected))
        more = (say("user", f"and {k}?"), say("assistant", f"maps {k}")) if k % 2 else ()
        prompt = (say("user", str(pair.prompt)),)
        pairs.append(replace(pair, prompt=prompt, chosen=(chosen, *more), rejected=(rejected, *more[: k % 4])))
    return PairSet(tuple(pairs))


def test_turns_are_the_messages_of_the_response(tmp_path: Path) -> None:
    pairs, loaded = turned(), tiny_loaded()
    train, heldout = pairs[:8], pairs[8:]
    positions = mc.extract_positions(loaded, train, heldout, cache_dir=tmp_path)
    turn = positions.train.turn
    assert turn is not None
    for k, pair in enumerate(train):
        for side, messages in enumerate((pair.chosen, pair.rejected)):
            mine = positions.train.response == 2 * k + side
            texts = [
                loaded.tokenizer.decode(positions.train.target[mine & (turn == number)])
                for number in range(len(messages))
            ]
            assert all(message["content"] in text for message, text in zip(messages, texts, strict=True))  # type: ignore[index]
    recipe = head_recipe(beta=0.5, steps=3, batch_size=4, learning_rate=1e-2)
    profile = mc.forecast(positions, recipe).reward_profile()
    for k in range(8):
        turns = profile.train.turns(k)
        assert [each.role for each in turns] == ["assistant", "user", "assistant"][: len(turns)]
        both = [sum(each.chosen for each in turns), sum(each.rejected for each in turns)]
        assert both == pytest.approx(profile.train.by_response[k].tolist(), rel=1e-9, abs=1e-12)
    profile.save(tmp_path / "saved")
    results = read_summary(tmp_path / "saved")["results"]["length"]
    assert results["slope"]["low"] < results["slope"]["value"] < results["slope"]["high"]
    assert [each["role"] for each in results["turns"]] == ["assistant", "user", "assistant"]
    assert page_of(tmp_path / "saved").count("Where in the response") == 1
    rows = [json.loads(line) for line in (tmp_path / "saved" / "length.jsonl").read_text().splitlines()]
    assert rows == json.loads(json.dumps(profile.rows()))
    assert len(profile.to_pandas()) == 12 and profile._repr_html_().startswith("<table>")
