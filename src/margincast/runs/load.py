"""How is a finished run read back? As a `Run`, or refused in one line that says what is missing or damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from margincast.errors import InputError
from margincast.recipe.losses import LOSS_PARAMETERS, get_loss
from margincast.records import Pair, PairSet, SplitTrajectory, Text, Trajectory
from margincast.results import Json
from margincast.runs.layout import INTERVALS, MARGINS, PAIRS, SCHEMA_VERSION, SUMMARY
from margincast.runs.store import file_sha256


def fitted(summary: Mapping[str, Any]) -> bool:
    """Whether a run is a forecast of training more than the unembedding, which is not exact.

    Runs from before recipes were those of `train` say so by a `backbone`, or say nothing of what trains.
    """
    config = summary["config"]
    trains = config.get("train", "head") != "head" and config.get("backbone") is None
    return summary["command"] == "forecast" and (config.get("backbone") == "trained" or trains)


@dataclass(frozen=True)
class Run:
    """A finished forecast or training run, as read from its folder."""

    folder: Path
    summary: Json
    trajectory: Trajectory

    @property
    def title(self) -> str:
        """How figures and tables call this run."""
        config = self.summary["config"]
        if self.summary["command"] == "forecast":
            return f"forecast, {'trained' if fitted(self.summary) else 'frozen'} backbone"
        what = {"all": "all weights", "head": "unembedding only", "lora": "LoRA"}.get(config["train"], config["train"])
        return ", ".join(["training", what, *([config["trainer"]] if "trainer" in config else [])])


def intervals_of(forecast: Trajectory | Run) -> Mapping[str, torch.Tensor]:
    """The intervals of a forecast that is not exact, as `intervals.safetensors` keeps them; none of any other run.

    heldout_low, heldout_high: (steps, pairs);  band_margin, band_accuracy: (1 + concepts, steps, 3) median, low and
    high, of all held-out pairs first and then of every concept, in the order of `heldout.pairs.concepts`
    """
    if isinstance(forecast, Run):
        path = forecast.folder / INTERVALS
        return load_file(path) if path.is_file() else {}
    tensors: Mapping[str, torch.Tensor] = getattr(forecast, "interval_tensors", {})
    return tensors


def load_run(folder: str | Path) -> Run:
    """Read a finished run. Raises `InputError` when `folder` is not one, saying what is missing or damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist")
    needed = (SUMMARY, MARGINS, PAIRS)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is not a finished forecast or training run: {', '.join(missing)} not there")
    summary = read_summary(folder)
    try:
        rows = [json.loads(line) for line in (folder / PAIRS).read_bytes().splitlines()]
        tensors = load_file(folder / MARGINS)
        final = summary["config"]
        parameters = {name: final.get(name) for name in LOSS_PARAMETERS}
        loss = get_loss(final["loss_type"], float(final["beta"]), without_reference=True, **parameters)
        trajectory = Trajectory(
            steps=tuple(tensors["steps"].tolist()),
            train=_split(tensors, rows, "train"),
            heldout=_split(tensors, rows, "heldout"),
            beta=float(final["beta"]),
            loss_type=loss if loss.parameters else loss.name,
            origin=summary["results"]["origin"],
            error=summary["results"].get("numerical_error"),
        )
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is damaged: {type(error).__name__}: {error}") from error
    return Run(folder, summary, trajectory)


def read_summary(folder: Path) -> Json:
    """The `summary.json` of a finished run whose files are those that it wrote.

    Raises `InputError` when there is none, when it is damaged or of another schema, and for the files that are damaged.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{folder} is not a finished run: it has no readable {SUMMARY}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder} is damaged: {SUMMARY}: {type(error).__name__}: {error}") from error
    if not isinstance(summary, dict) or not all(isinstance(summary.get(name), dict) for name in ("config", "results")):
        raise InputError(f"{folder} is damaged: {SUMMARY} does not hold the config and results of a run")
    if summary.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{folder} was written with schema {summary.get('schema_version')}; this margincast reads {SCHEMA_VERSION}"
        )
    check_files(folder, summary)
    return summary


def check_files(folder: Path, summary: Mapping[str, Any]) -> None:
    """Raise `InputError` for files that are not those whose hashes `summary` has, by name. Runs of before have none."""
    files = summary.get("files", {})
    if not isinstance(files, dict):
        raise InputError(f"{folder} is damaged: the files of {SUMMARY} are no names with hashes")
    there = {name: folder / name for name in files if (folder / name).is_file()}
    damaged = [name for name, path in there.items() if file_sha256(path) != files[name]]
    if damaged:
        raise InputError(
            f"{folder} is damaged: {', '.join(damaged)} changed after the run wrote it (its SHA-256 in {SUMMARY} is "
            "another); run it again"
        )


def _split(tensors: dict[str, torch.Tensor], rows: Sequence[Json], name: str) -> SplitTrajectory:
    pairs = PairSet(tuple(pair_of(row) for row in rows if row["split"] == name))
    expected = (len(tensors["steps"]), len(pairs))
    for key in (name, f"{name}_chosen"):
        if key in tensors and tuple(tensors[key].shape) != expected:
            raise ValueError(f"{key} is {tuple(tensors[key].shape)} for {expected[0]} steps and {expected[1]} pairs")
    return SplitTrajectory(pairs, tensors[name], tensors.get(f"{name}_chosen"))


def pair_of(row: Mapping[str, Any]) -> Pair:
    """The pair of a row that `pair_row` made. Raises `KeyError` for a row that lacks something."""

    def text(value: Any) -> Text:
        return value if isinstance(value, str) else tuple(value)

    return Pair(
        id=row["id"],
        concept=row["concept"],
        prompt=text(row["prompt"]),
        chosen=text(row["chosen"]),
        rejected=text(row["rejected"]),
        source=row["source"],
        line=row["line"],
        statement=row.get("statement"),
    )
