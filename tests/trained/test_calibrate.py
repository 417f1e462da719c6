"""Does a calibration move constants as far as its runs say, come out alike after a stop, and say how near it is?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from margincast.errors import InputError, StatedFailure
from margincast.features import extract_features
from margincast.forecasting import forecast
from margincast.recipe.recipe import Recipe
from margincast.records import Pair, PairSet
from margincast.scores import crps_of_draws
from margincast.trained import calibrate as module
from margincast.trained.calibrate import calibrate, plan_runs, within_budget
from margincast.trained.calibration import Calibration, calibration_of, package_calibration
from margincast.trained.constants import package_constants
from margincast.trained.fit_run import FitRun
from margincast.trained.prior import laws_with_prior, means_with_prior, share_of
from margincast.trained.validity import validity_of, widened
from tests.tiny import tiny_loaded
from tests.trained.test_fit import AMPLITUDE, GROWTH, drawn_runs

RECIPE = Recipe(max_steps=8, per_device_train_batch_size=8, learning_rate=1e-3, eval_steps=2, beta=0.1)


def data(name: str, count: int = 24) -> tuple[PairSet, PairSet]:
    pairs = [
        Pair(f"{name}:{i}", name, f"The {name} question number {i} is", *sides, name, i + 1)
        for i in range(count)
        for sides in [(" Yes", " No") if i % 2 else (" No", " Yes")]
    ]
    return PairSet(tuple(pairs[: count * 2 // 3])), PairSet(tuple(pairs[count * 2 // 3 :]))


def test_without_runs_the_constants_are_the_packages() -> None:
    package = package_constants()
    assert package.from_rehearsal is not None
    assert laws_with_prior([], package.from_rehearsal) == package.from_rehearsal


def test_many_runs_find_what_they_were_made_with_and_few_are_held_near_the_package() -> None:
    """Runs drawn from other constants than the package's (`test_fit`), A off by .1 in the logarithm."""
    runs, package = [FitRun(run) for run in drawn_runs()], package_constants().from_features
    many, few = means_with_prior(runs, package), means_with_prior(runs[:2], package)
    assert many.growth.power == pytest.approx(GROWTH.power, abs=0.02)
    assert many.growth.slowing == pytest.approx(GROWTH.slowing, abs=0.01)
    for run in runs:  # what the law is for: A of runs
        ends = [
            law.at(run.length(run.max_steps), run.plan.pairs, run.spread, run.lora)
            for law in (many.amplitude, AMPLITUDE)
        ]
        assert abs(np.log(ends[0] / ends[1])) < 0.2
    assert 0 < share_of(runs[:2]) < share_of(runs) < 1
    for name in ("power", "slowing"):
        gap = [abs(getattr(laws.growth, name) - getattr(GROWTH, name)) for laws in (package, few, many)]
        assert gap[0] > gap[1] > gap[2]


def test_the_plan_takes_what_its_budget_holds() -> None:
    runs = plan_runs(["a", "b"], RECIPE)
    assert [(run.what, run.data) for run in runs][:5] == [
        ("run", "a"), ("run", "b"), ("twin", "a"), ("short", "a"), ("short", "b"),
    ]  # fmt: skip
    assert len({run.name for run in runs}) == len(runs)
    assert len(within_budget(runs, 60.0, 3.6)) == 4  # 1 + 1 + 1 + .5
    assert len(within_budget(runs, 60.0, 0.1)) == 1
    assert within_budget(runs, 60.0, None) == runs


def test_stopped_and_started_again_it_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"a": data("a"), "b": data("b")}
    monkeypatch.setattr(module, "within_budget", lambda runs, *_: runs[:3])
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    whole = calibrate(sets, tiny_loaded(), RECIPE, out=tmp_path / "whole.json", **options)
    real, calls = module.rehearse, list[int]()

    def stops(*words: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise StatedFailure("stopped here")
        return real(*words, **named)

    monkeypatch.setattr(module, "rehearse", stops)
    with pytest.raises(StatedFailure):
        calibrate(sets, tiny_loaded(), RECIPE, out=tmp_path / "again.json", **options)
    assert not (tmp_path / "again.json").exists()
    calibrate(sets, tiny_loaded(), RECIPE, out=tmp_path / "again.json", **options)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    error = whole.calibration.error
    assert error["left_out"] == "data sets"
    assert error["floor"]["crps"]["accuracy"] >= 0
    assert [run["what"] for run in whole.runs] == ["run", "run", "twin"]
    assert whole.calibration.constants != package_constants()
    features = extract_features(tiny_loaded(), *data("c"), cache_dir=tmp_path / "cache")
    made = forecast(features, RECIPE, calibration=tmp_path / "again.json")
    assert made.validity.model == "same"
    assert not made.validity.far


def test_one_data_set_leaves_runs_out_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one = calibrate({"a": data("a")}, tiny_loaded(), RECIPE, budget=1e-6, cache_dir=cache)
    assert one.calibration.error["left_out"] == "runs"
    assert one.calibration.error["floor"] is None
    # The cache has it under the model's hash: forecasts of that model find it, of others they do not.
    loaded = tiny_loaded()
    found = calibration_of(None, loaded.hash, None, cache)
    assert found.constants == one.calibration.constants
    assert calibration_of(None, "another", None, cache) == package_calibration()
    train, _ = data("a")
    with pytest.raises(InputError, match="a: 16 training and 0 held-out pairs"):
        calibrate({"a": (train, PairSet(()))}, loaded, RECIPE, cache_dir=cache)
    with pytest.raises(InputError, match="runs of 8 steps at least"):
        calibrate({"a": data("a")}, loaded, replace(RECIPE, max_steps=4), cache_dir=cache)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda values: values | {"schema_version": 9}, "not of schema 2"),
        (lambda values: values | {"world": {}}, "world has model"),
        (lambda values: values | {"more": 1}, "not constants, world and error"),
        (lambda values: values | {"constants": 3}, "constants is no record"),
        (lambda values: values | {"world": values["world"] | {"beta": [1]}}, "world.beta is no smallest and largest"),
    ],
)
def test_files_that_are_no_calibration_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "one.json"
    package_calibration().save(path)
    assert Calibration.read(path).constants == package_constants()
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=said):
        Calibration.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        Calibration.read(path)


def test_far_from_the_runs_intervals_double_and_the_rehearsal_weighs_more() -> None:
    """On Gemma-3-270M a rehearsal reached 20 nats times 1/10 where the constants of SmolLM2 made 10 of it."""
    run = drawn_runs()[0]
    validity = validity_of(package_calibration(), run.features, run.recipe, 6e-4)
    assert validity.foreign
    assert validity.as_dict()["intervals_doubled"]
    before, after = package_constants().from_rehearsal, widened(package_constants(), validity).from_rehearsal
    assert before is not None and before.rehearsal is not None
    assert after is not None and after.rehearsal is not None
    assert after.noise.amplitude == pytest.approx(2 * before.noise.amplitude)
    assert after.rehearsal.power > 2 * before.rehearsal.power
    ratio = [law.at(40.0, 1.0) / law.at(20.0, 1.0) for law in (before.rehearsal, after.rehearsal)]
    assert ratio[1] > ratio[0]
    near = replace(validity, model="family", far=())
    assert widened(package_constants(), near) == package_constants()


def test_crps_of_a_sample_is_its_definition() -> None:
    draws = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = (draws[:, None] - draws[None]).abs().mean() / 2
    assert float(crps_of_draws(draws, 0.3)) == pytest.approx(float((draws - 0.3).abs().mean() - pairs), abs=1e-12)
