"""What does a fitted forecast need to know of this model? A few true runs, planned, made and fitted; resumable.

made = calibrate({"a": (train, heldout), "b": (train, heldout)}, "my-model", recipe, budget=30, out="my.json")
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from margincast.errors import InputError
from margincast.models.kind import kind_of
from margincast.models.load import LoadedModel, default_cache_dir, opened
from margincast.passes.tokenize import Encoding, encode
from margincast.recipe.fields import options_of
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet, Trajectory
from margincast.results import Json
from margincast.runs.load import load_run
from margincast.runs.save import data_summary, save_trajectory, trajectory_results, write_summary
from margincast.runs.store import key_of, plain, write_json, write_tensors
from margincast.trained.calibration import Calibration, World, folder_of
from margincast.trained.calibration_error import error_of
from margincast.trained.constants import Constants, package_constants
from margincast.trained.fit_run import FitRun
from margincast.trained.inputs import check_recipe
from margincast.trained.prior import laws_with_prior, left_out_of
from margincast.trained.rehearsal import Rehearsal, rehearse, size_of
from margincast.trained.time import learning_rates
from margincast.trained.trained_run import TrainedRun
from margincast.training.run import forget_state, train_model

SHARE = 0.1  # of the training's pairs, that a rehearsal takes
POINTS = 4  # recorded steps of a run, at least
Splits = Mapping[str, tuple[PairSet, PairSet]]


@dataclass(frozen=True)
class Planned:
    """A run that is to be made. what: the recipe's "run", its "twin" in another batch order, a "short" one of half the
    steps, or one of a "subset", half of the pairs"""

    data: str
    what: str
    recipe: Recipe
    share: float

    @property
    def name(self) -> str:
        return f"{self.what}-{key_of([self.data])[:8]}"


@dataclass(frozen=True)
class Calibrated:
    """A calibration, the file it is in, and the runs it is from: data, what, steps, seconds, accuracy and margin."""

    calibration: Calibration
    path: Path
    runs: Sequence[Json]


def plan_runs(data: Sequence[str], recipe: Recipe) -> list[Planned]:
    """All runs worth making, what teaches most for its time first: the recipe's run of every data set, one twin, the
    short runs, the other twins, the subsets."""
    kinds = {
        "run": (recipe, 1.0),
        "twin": (replace(recipe, seed=recipe.seed + 1), 1.0),
        "short": (replace(recipe, max_steps=max(2, recipe.steps // 2)), 1.0),
        "subset": (recipe, 0.5),
    }
    order = [("run", name) for name in data] + [("twin", data[0])] + [("short", name) for name in data]
    order += [("twin", name) for name in data[1:]] + [("subset", name) for name in data]
    listed = []
    for what, name in order:
        settings, share = kinds[what]
        often = min(settings.eval_steps, max(1, settings.steps // POINTS))
        listed.append(Planned(name, what, replace(settings, eval_steps=often), share))
    return listed


def within_budget(runs: Sequence[Planned], seconds: float, budget: float | None) -> list[Planned]:
    """The first of `runs` that `budget` minutes make, at so many `seconds` as the first of them took; one at least."""
    if budget is None:
        return list(runs)
    chosen, spent = [runs[0]], seconds
    for run in runs[1:]:
        spent += seconds * run.recipe.steps / runs[0].recipe.steps
        if spent > 60.0 * budget:
            break
        chosen.append(run)
    return chosen


@dataclass(frozen=True)
class Maker:
    """Makes planned runs, each in its folder of `folder`."""

    loaded: LoadedModel
    splits: Splits
    eos: bool | None
    folder: Path
    cache_dir: Path
    progress: bool

    def made(self, run: Planned) -> TrainedRun:
        """`run`, read where it is finished and gone on with where it is not."""
        from margincast.features import features_of

        train, heldout = self.splits[run.data]
        train = train if run.share == 1.0 else train.spread(max(2, round(run.share * len(train))))
        both = PairSet(train.pairs + heldout.pairs)
        encoding = encode(
            both, self.loaded.tokenizer, eos=self.eos, max_length=run.recipe.max_length, context=self.loaded.context
        )
        if not encoding.single_token:
            raise InputError(f"{run.data}: some responses have several tokens, and calibrate knows those of one")
        features = features_of(
            self.loaded, encoding, train, heldout, cache_dir=self.cache_dir, progress=self.progress, layers=True
        )
        recipe, folder = run.recipe.for_pairs(len(train)), self.folder / run.name
        if not (folder / "summary.json").is_file():
            self._train(run, encoding, features, folder)
        rehearsal = self._rehearsed(encoding, features, recipe, folder)
        return TrainedRun(features, recipe, load_run(folder).trajectory, rehearsal, run.data)

    def _train(self, run: Planned, encoding: Encoding, features: Features, folder: Path) -> Trajectory:
        begun = time.monotonic()
        fresh = LoadedModel(
            self.loaded.name, self.loaded.hash, copy.deepcopy(self.loaded.model), self.loaded.tokenizer
        )  # fmt: skip
        trajectory = train_model(
            fresh, encoding, features, run.recipe, folder, progress=self.progress, save_model=False, keep_state=True
        )
        rows = save_trajectory(folder, trajectory)
        results = trajectory_results(trajectory, rows, time.monotonic() - begun)
        both = encoding.pairs
        data = data_summary(both, features.train.pairs, features.heldout.pairs, run.data)
        config = {"data": run.data} | config_of(run.recipe)
        model = {"id": self.loaded.name, "revision": None, "hash": self.loaded.hash}
        write_summary(folder, "train", config, results, data=data, model=model, device=self.loaded.device)
        forget_state(folder)
        return trajectory

    def _rehearsed(self, encoding: Encoding, features: Features, recipe: Recipe, folder: Path) -> Rehearsal:
        from safetensors.torch import load_file

        path = folder / "rehearsal.safetensors"
        if path.is_file():
            kept = load_file(path)
            return Rehearsal(kept["heldout"], int(kept["pairs"]))
        steps, batch = size_of(recipe, SHARE)
        done = rehearse(self.loaded, encoding, features, recipe, steps, batch, seed=recipe.seed, progress=self.progress)
        write_tensors(path, {"heldout": done.heldout, "pairs": torch.tensor(done.pairs)})
        return done


def config_of(recipe: Recipe) -> Json:
    settings: Json = plain({name: getattr(recipe, name) for name in options_of(type(recipe))})
    return settings


def calibrate(
    data: Splits,
    model: str | Path | LoadedModel | tuple[Any, Any] = "smollm2",
    recipe: Recipe | None = None,
    *,
    budget: float | None = None,
    out: str | Path | None = None,
    eos: bool | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Calibrated:
    """Make the runs that `recipe` and `budget` allow, and fit the constants of forecasts of `model` to them.

    data: training and held-out pairs of every data set by its name;  recipe: None is `Recipe()`
    budget: minutes, None makes all that is planned;  out: the file to write, beside which runs are kept; None: the
    cache, under the model's hash, where `forecast` finds it
    say: is told the plan before it is made

    Called again with the same it goes on where it was stopped, to the same file. Raises `InputError` for data without
    held-out pairs, responses of several tokens, and settings that fitted forecasts do not know.
    """
    recipe = Recipe() if recipe is None else recipe
    check_recipe(recipe)
    for name, (train, heldout) in data.items():
        if not len(heldout) or not len(train):
            raise InputError(f"{name}: {len(train)} training and {len(heldout)} held-out pairs; calibrate needs both")
    if not data or (budget is not None and not budget > 0):
        raise InputError("calibrate takes one data set at least, and a budget of more than 0 minutes")
    if recipe.max_steps is None:
        recipe = recipe.for_pairs(min(len(train) for train, _ in data.values()))
    if recipe.steps < 2 * POINTS:
        raise InputError(f"calibrate takes runs of {2 * POINTS} steps at least, got {recipe.steps}")
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
    loaded = opened(model, cache)
    prints = {name: [part.fingerprint for part in parts] for name, parts in data.items()}
    key = key_of([loaded.hash, config_of(recipe), prints, budget, eos])[:16]
    path = folder_of(cache) / f"{loaded.hash}.json" if out is None else Path(out)
    folder = (folder_of(cache) / "runs" if out is None else path.with_suffix(".runs")) / key
    maker = Maker(loaded, data, eos, folder, cache, progress)
    runs = _all_made(maker, plan_runs(list(data), recipe), budget, say)
    fitted = [FitRun(run) for _, run in runs]
    calibration = fit_calibration(fitted, loaded)
    calibration.save(path)
    return Calibrated(replace(calibration, name=str(path)), path, [_row(plan, run, folder) for plan, run in runs])


def _all_made(
    maker: Maker, runs: Sequence[Planned], budget: float | None, say: Callable[[str], None]
) -> list[tuple[Planned, TrainedRun]]:
    """The first run, and those that the budget leaves room for by what the first took; chosen once and for all."""
    kept, begun = maker.folder / "plan.json", time.monotonic()
    say(f"Plan, as far as the budget goes: {', '.join(f'{run.what} of {run.data}' for run in runs)}")
    made = [(runs[0], maker.made(runs[0]))]
    if kept.is_file():
        count = int(json.loads(kept.read_text(encoding="utf-8"))["runs"])
    else:
        seconds = time.monotonic() - begun
        count = len(within_budget(runs, seconds, budget))
        write_json(kept, {"runs": count, "seconds": seconds})
        say(f"The first took {seconds:.0f} s; {count} of {len(runs)} runs are made")
    for run in runs[1:count]:
        made.append((run, maker.made(run)))
        say(f"made: {run.what} of {run.data}, {run.recipe.steps} steps")
    return made


def _row(plan: Planned, run: TrainedRun, folder: Path) -> Json:
    results = load_run(folder / plan.name).summary["results"]
    return {
        "data": plan.data, "what": plan.what, "steps": run.recipe.steps, "pairs": len(run.features.train.pairs),
        "seed": run.recipe.seed, "seconds": results["seconds"], "concepts": results["concepts"],
        "folder": str(folder / plan.name),
    }  # fmt: skip


def fit_calibration(runs: Sequence[FitRun], loaded: LoadedModel) -> Calibration:
    """The package's constants after `runs`, and how far such constants miss runs that they do not know."""
    package = package_constants()
    assert package.from_rehearsal is not None
    paths: dict[str, tuple[float, float]] = {}
    for run in runs:
        kind, length = run.trained.recipe.train, float(f"{sum(learning_rates(run.trained.recipe)):.3g}")
        low, high = paths.get(kind, (length, length))
        paths[kind] = (min(low, length), max(high, length))
    sets = len({run.data for run in runs})
    constants = Constants(
        f"{len(runs)} runs of {sets} data {'set' if sets == 1 else 'sets'}, {loaded.name}, with the package's as prior",
        paths,
        laws_with_prior(runs, package.from_features),
        laws_with_prior(runs, package.from_rehearsal),
    )
    error = error_of(left_out_of(runs, package.from_rehearsal, laws_with_prior), "data sets" if sets > 1 else "runs")
    return Calibration(constants, world_of(runs, loaded), error)


def world_of(runs: Sequence[FitRun], loaded: LoadedModel) -> World:
    recipes = [run.trained.recipe for run in runs]
    ranks = [float(recipe.lora_r) for recipe in recipes if recipe.train == "lora"]

    def ends(values: Sequence[float]) -> tuple[float, float]:
        return float(min(values)), float(max(values))

    losses = tuple(sorted({recipe.loss.name for recipe in recipes}))
    return World(
        loaded.name, loaded.hash, kind_of(loaded.model), losses, (1, 1),
        ends([recipe.learning_rate for recipe in recipes]), ends([recipe.steps for recipe in recipes]),
        ends([recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps for recipe in recipes]),
        ends([recipe.beta for recipe in recipes]), ends(ranks) if ranks else None,
    )  # fmt: skip
