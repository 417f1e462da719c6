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
from margincast.runs.layout import MARGINS, PAIRS, SCHEMA_VERSION, SUMMARY


@dataclass(frozen=True)
class Run:
    """A finished forecast or training run, as read from its folder."""

    folder: Path
    summary: dict[str, Any]
    trajectory: Trajectory

    @property
    def title(self) -> str:
        """How figures and tables call this run."""
        config = self.summary["config"]
        if self.summary["command"] == "forecast":
            return f"forecast, {config.get('backbone', 'frozen')} backbone"
        what = {"all": "all weights", "head": "unembedding only", "lora": "LoRA"}.get(config["train"], config["train"])
        return ", ".join(["training", what, *([config["trainer"]] if "trainer" in config else [])])


def load_run(folder: Path) -> Run:
    """Read a finished run. Raises `InputError` when `folder` is not one, saying what is missing."""
    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist")
    needed = (SUMMARY, MARGINS, PAIRS)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is not a finished forecast or training run: {', '.join(missing)} not there")
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / PAIRS).read_bytes().splitlines()]
        tensors = load_file(folder / MARGINS)
        if summary["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{folder} was written with schema {summary['schema_version']}; this margincast reads {SCHEMA_VERSION}"
            )
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


def _split(tensors: dict[str, torch.Tensor], rows: Sequence[dict[str, Any]], name: str) -> SplitTrajectory:
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
