"""In which settings do two runs differ? By name, with both values: what a gap between them may come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from margincast.recipe.fields import options_of
from margincast.recipe.recipe import LORA, Recipe
from margincast.results import Json
from margincast.runs.load import Run, fitted

# Settings of a recipe that move no margin, or whose meaning is in the recorded steps.
ASIDE = {"eval_steps", "record_train", "report_to", "gradient_checkpointing", "max_steps", "num_train_epochs"}


@dataclass(frozen=True)
class Differences:
    """differing: setting -> its values in both runs;  unrecorded: settings that one of them does not keep."""

    differing: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    unrecorded: tuple[str, ...] = ()

    def as_dict(self) -> Json:
        """`results.differences` and `results.unrecorded` of `compare`."""
        listed = [{"name": name, "a": a, "b": b} for name, (a, b) in self.differing.items()]
        return {"differences": listed, "unrecorded": list(self.unrecorded)}


def differences(a: Run, b: Run) -> Differences:
    """Of `a` and `b`: what was trained and how, on which pairs, from which model, for how many steps.

    A setting that one of the two does not keep (a run inside another trainer keeps fewer) is named apart, since it may
    differ.
    """
    found: dict[str, tuple[Any, Any]] = {}
    unrecorded = []
    for name, left, right in _settings(a, b):
        if left is None and right is None:
            continue
        if (left is None or right is None) and name not in _optional():
            unrecorded.append(name)
        elif left != right:
            found[name] = (left, right)
    return Differences(found, tuple(unrecorded))


def _optional() -> set[str]:
    """Settings whose value may be None."""
    return {name for name in options_of(Recipe) if getattr(Recipe, name) is None}


def _settings(a: Run, b: Run) -> Iterator[tuple[str, Any, Any]]:
    yield "train", _trains(a), _trains(b)
    yield "steps", a.trajectory.steps[-1], b.trajectory.steps[-1]
    both = a.summary["config"], b.summary["config"]
    adapters = _trains(a) == _trains(b) == "lora"
    for name in options_of(Recipe):
        if name not in ASIDE and name != "train" and (adapters or name not in LORA):
            yield name, both[0].get(name), both[1].get(name)
    by_hash = all("hash" in run.summary.get("model", {}) for run in (a, b))
    yield "model", _model(a, by_hash), _model(b, by_hash)
    for split, pairs in (("train", "training pairs"), ("heldout", "held-out pairs")):
        yield pairs, _fingerprint(a, split), _fingerprint(b, split)
    yield "dtype", a.summary["environment"].get("dtype"), b.summary["environment"].get("dtype")


def _trains(run: Run) -> Any:
    """`Recipe.train` of a run; forecasts and runs from before recipes, and those of TRL, have other words."""
    if run.summary["command"] == "forecast" and not fitted(run.summary):
        return "head"
    what = run.summary["config"].get("train", "all")
    return "lora" if what == "adapter" else what


def _model(run: Run, by_hash: bool) -> Any:
    """The model that a run started from; a training run keeps the hash of the one that it left."""
    named = run.summary.get("model", {}).get("hash" if by_hash else "id")
    trained = by_hash and run.summary["command"] == "train"
    return named.rpartition(", trained in run ")[0] or named if trained else named


def _fingerprint(run: Run, split: str) -> Any:
    """Of the pairs of a split; None where the run does not know all of them: a trainer's callback is given some."""
    if split == "train" and "trainer" in run.summary["config"]:
        return None
    return run.summary.get("data", {}).get("fingerprint", {}).get(split)
