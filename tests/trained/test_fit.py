"""Does the fit find the constants that runs were made with? Runs drawn by the plain formula, and the bank's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.forecasting import forecast
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, Pair, PairSet, SplitTrajectory, Trajectory
from margincast.trained.amplitude import AmplitudeLaw
from margincast.trained.constants import Constants, package_constants
from margincast.trained.fit import HOLD, fit_constants, fit_growth
from margincast.trained.fit_run import FitRun
from margincast.trained.forecast import TrainedForecast
from margincast.trained.growth import GrowthLaw
from margincast.trained.laws import ShapeLaw
from margincast.trained.offset import OffsetLaw
from margincast.trained.rehearsal import Rehearsal
from margincast.trained.trained_run import TrainedRun

AMPLITUDE = AmplitudeLaw(scale=0.05, length=0.75, pairs=0.4, spread=-0.4, adapter=0.6)
GROWTH, SHAPE, OFFSET = GrowthLaw(2.2, -0.1), ShapeLaw(0.4, 0.1, 1e-3), OffsetLaw(0.3, 0.03, 0.5)
NOISE = 0.1  # standard deviation of log A
FACTOR = 3.0  # A = FACTOR (R + 2)^0.5 of a rehearsal that reached R


def pairs_of(data: str, name: str, count: int) -> PairSet:
    """Two concepts by turns, and as many pairs of either preference in each."""
    return PairSet(
        tuple(
            Pair(f"{name}:{row}", f"{data} {row % 2}", str(row), *sides, "drawn", row + 1)
            for row in range(count)
            for sides in [("Yes", "No") if row // 2 % 2 else ("No", "Yes")]
        )
    )


def features_of(data: str, seed: int, train: int, heldout: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = 0.6 * torch.randn(2, 8, generator=generator, dtype=torch.float64)

    def split(name: str, count: int) -> FeatureSet:
        pairs = pairs_of(data, name, count)
        yes = torch.tensor([pair.chosen == "Yes" for pair in pairs]).double()
        layers = torch.randn(count, 2, 8, generator=generator, dtype=torch.float64)
        layers += ((2 * yes - 1)[:, None] * centres[torch.arange(count) % 2])[:, None]
        chosen = tuple((int(side),) for side in yes)
        rejected = tuple((1 - int(side),) for side in yes)
        nothing = torch.zeros(count, dtype=torch.float64)
        return FeatureSet(pairs, layers[:, -1], chosen, rejected, nothing, nothing, layers=layers)

    unembedding = torch.zeros(2, 8, dtype=torch.float64)
    return Features(split("train", train), split("heldout", heldout), torch.tensor([0, 1]), unembedding, "drawn", "0")


def run_of(
    features: Features, recipe: Recipe, nats: Mapping[int, Tensor], rehearsal: Tensor | None = None
) -> TrainedRun:
    """A run that recorded `nats`, (pairs,) over beta, at its steps."""
    margins = recipe.beta * torch.stack(list(nats.values()))
    nothing = SplitTrajectory(PairSet(()), torch.zeros(len(margins), 0, dtype=torch.float64))
    trajectory = Trajectory(tuple(nats), nothing, SplitTrajectory(features.heldout.pairs, margins), recipe.beta)
    rehearsed = None if rehearsal is None else Rehearsal(recipe.beta * rehearsal, 8)
    return TrainedRun(features, recipe, trajectory, rehearsed, features.heldout.pairs.concepts[0])


def drawn_run(number: int, generator: np.random.Generator) -> TrainedRun:
    """m(s) / beta = A x^p h + (1 - (1 - remaining) x) delta . b(s), with noise of log A alone."""
    lora, steps = number % 4 == 3, int(generator.choice([12, 24, 48]))
    rate = float(generator.choice([5e-6, 1e-5, 2e-5])) * (20.0 if lora else 1.0)
    recipe = Recipe(
        train="lora" if lora else "all", learning_rate=rate, max_steps=steps, eval_steps=steps // 4, beta=0.1,
        per_device_train_batch_size=int(generator.choice([8, 16, 32])), seed=number,
    )  # fmt: skip
    features = features_of(f"set {number // 3}", number // 3, 60, 40)
    blank = FitRun(run_of(features, recipe, {step: torch.zeros(40, dtype=torch.float64) for step in recipe.recorded}))
    mean = AMPLITUDE.at(blank.length(steps), blank.plan.pairs, blank.spread, lora)
    end = mean * float(np.exp(NOISE * generator.standard_normal()))
    shape, path = blank.shape(SHAPE.of(end)), blank.offset_path(OFFSET)
    nats = {}
    for step in recipe.recorded:
        x = step / steps
        nats[step] = end * x ** (GROWTH.power + GROWTH.slowing * np.log(end)) * shape
        nats[step] = nats[step] + (1.0 - (1.0 - OFFSET.remaining) * x) * path[step]
    return run_of(features, recipe, nats, max((end / FACTOR) ** 2 - 2.0, 0.1) * shape)


@cache
def drawn_runs() -> list[TrainedRun]:
    generator = np.random.default_rng(3)
    return [drawn_run(number, generator) for number in range(24)]


@cache
def constants() -> Constants:
    return fit_constants(drawn_runs())


def test_the_constants_that_runs_were_made_with_are_found() -> None:
    """What has no noise exactly; exponents of A within three standard deviations of what 24 runs leave open."""
    laws = constants().from_features
    assert laws.growth.power == pytest.approx(GROWTH.power, abs=1e-6)
    assert laws.growth.slowing == pytest.approx(GROWTH.slowing, abs=1e-6)
    assert laws.offset == OFFSET
    runs = [FitRun(run) for run in drawn_runs()]
    assert [laws.shape.of(run.amplitude) for run in runs] == [SHAPE.of(run.amplitude) for run in runs]
    design = np.array([
        [1.0, np.log(run.length(run.max_steps)), np.log(run.plan.pairs), np.log(run.spread), float(run.lora)]
        for run in runs
    ])  # fmt: skip
    left_open = np.linalg.inv(design.T @ design + HOLD * np.diag([0.0, 1.0, 1.0, 1.0, 1.0]))
    found, true = (
        np.array([np.log(law.scale), law.length, law.pairs, law.spread, np.log(law.adapter)])
        for law in (laws.amplitude, AMPLITUDE)
    )
    assert (np.abs(found - true) <= 3 * NOISE * np.sqrt(np.diag(left_open))).all()
    assert np.abs(found - true)[1:].max() < 0.3
    assert NOISE / 2 < laws.noise.amplitude < 2 * NOISE


def test_forecasts_beside_a_rehearsal_have_constants_of_their_own() -> None:
    """A grows with how far the rehearsal got, which also says what offsets are left at the end."""
    beside = constants().laws(with_rehearsal=True)
    assert beside.rehearsal is not None
    assert beside.rehearsal.power > 0.1
    assert NOISE / 2 < beside.noise.amplitude < 2 * NOISE
    assert beside.offset.remaining == 0.0


def test_intervals_of_own_constants_hold_runs_that_the_fit_did_not_know(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    fit_constants([replace(run, rehearsal=None) for run in drawn_runs()[:-3]]).save(path)
    for run in drawn_runs()[-3:]:
        made = forecast(run.features, run.recipe, constants=path)
        assert isinstance(made, TrainedForecast)
        assert made.constants == Constants.read(path)
        span, end = made.bands[""].margin[-1], float(run.trajectory.heldout.margins[-1].mean())
        assert span.low <= end <= span.high
        assert end / 2 < span.value < 2 * end
    with pytest.raises(InputError, match="21 runs of 7 data sets, drawn were fitted without rehearsals"):
        forecast(run.features, run.recipe, constants=path, rehearsal=run.rehearsal)
    with pytest.raises(InputError, match="takes no rehearsal, no pilot and no calibration"):
        forecast(run.features, Recipe(train="head"), constants=path)


def test_constants_of_adapters_alone_forecast_no_other_run() -> None:
    adapters = [run for run in drawn_runs() if run.recipe.train == "lora"]
    only = fit_constants(adapters)
    assert set(only.paths) == {"lora"}
    assert only.from_features.offset.rate == 0.0
    with pytest.raises(InputError, match="know no run that trained all weights"):
        forecast(drawn_runs()[0].features, drawn_runs()[0].recipe, constants=only)


def test_what_cannot_be_fitted_is_refused_in_a_line() -> None:
    first, second, *_ = drawn_runs()
    apart = replace(second, data="another")
    for runs, said in (
        ([first, second], "2 runs of 1 data sets"),
        ([first, replace(apart, rehearsal=None)], "1 of 2 runs have a rehearsal"),
        (
            [first, replace(apart, features=replace(second.features, model="b", model_hash="1"))],
            "the runs are of b, dr",
        ),
    ):
        with pytest.raises(InputError, match=said):
            fit_constants(runs)
    short = replace(first.trajectory, steps=(0, *(step + 1 for step in first.trajectory.steps[1:])))
    shallow = replace(first.features, heldout=replace(first.features.heldout, layers=None))
    ends = [0, len(first.trajectory.steps) - 1]
    margins = replace(first.trajectory.heldout, margins=first.trajectory.heldout.margins[ends])
    abrupt = replace(first.trajectory, steps=(0, first.recipe.steps), heldout=margins)
    for changes, said in (
        ({"trajectory": short}, f"recorded up to step {first.recipe.steps + 1}"),
        ({"trajectory": abrupt}, "no step between the first and the last"),
        ({"features": shallow}, "extract features with layers=True"),
        ({"recipe": replace(first.recipe, train="head")}, "the backbone is frozen"),
        ({"rehearsal": Rehearsal(torch.zeros(3), 8)}, "3 margins for 40 held-out pairs"),
    ):
        with pytest.raises(InputError, match=said):
            replace(first, **changes)  # type: ignore[arg-type]


def test_the_constants_of_the_package_are_read_and_written_alike(tmp_path: Path) -> None:
    mine = package_constants()
    assert (mine.from_features.rehearsal, mine.laws(True).rehearsal is None) == (None, False)
    mine.save(tmp_path / "copy.json")
    assert Constants.read(tmp_path / "copy.json") == mine


@pytest.mark.parametrize(
    "keys, value, said",
    [
        (("schema_version",), 2, "not constants of schema 1"),
        (("fitted_on",), 3, "fitted_on says no runs"),
        (("paths", "all"), [2.0, 1.0], r"paths.all is not a shortest and a longest path, got \[2.0, 1.0\]"),
        (("from_features", "noise", "pair"), -1, "from_features.noise.pair is negative, got -1"),
        (("from_features", "noise", "pair"), "1", "from_features.noise.pair is no finite number, got '1'"),
        (("from_features", "growth"), {"power": 1.0}, "from_features.growth: slowing is missing"),
        (("from_features", "shape", "beta"), 1.0, "from_features.shape: beta is unknown"),
        (("from_rehearsal", "rehearsal"), None, "has constants of a rehearsal"),
        (("from_rehearsal", "rehearsal", "order_nats"), 0.0, "order_nats is not positive"),
    ],
)
def test_a_file_of_other_constants_is_refused(tmp_path: Path, keys: Sequence[str], value: Any, said: str) -> None:
    path = tmp_path / "own.json"
    package_constants().save(path)
    values = json.loads(path.read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=said):
        Constants.read(path)
    with pytest.raises(InputError, match=f"constants {tmp_path / 'none'}: No such file"):
        Constants.read(tmp_path / "none")


def test_growth_of_the_package_follows_from_the_margins_that_the_bank_keeps() -> None:
    """It needs no features, which the bank leaves in a cache: only margins and labels."""
    from benchmarks.forecast.bank import BANK, rehearsal_of
    from benchmarks.forecast.evaluate import ENOUGH
    from benchmarks.forecast.plan import PLAN
    from benchmarks.forecast.truth import load_file, trained_run

    runs = []
    for each in PLAN:
        if each.batch >= ENOUGH:
            tensors = load_file(BANK / f"{each.name}.safetensors")
            for name in ("train", "heldout"):
                count = len(tensors[f"{name}_yes"])
                tensors |= {
                    f"features_{name}": torch.zeros(count, 1),
                    f"features_layers_{name}": torch.zeros(count, 1, 1),
                }
            runs.append(FitRun(trained_run(each, tensors, load_file(rehearsal_of(each)))))
    kept = package_constants().from_features
    assert len(runs) == 37
    assert fit_growth(runs).power == pytest.approx(kept.growth.power, rel=1e-9)
    assert fit_growth(runs).slowing == pytest.approx(kept.growth.slowing, rel=1e-9)
