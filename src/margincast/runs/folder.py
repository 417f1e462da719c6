"""What does a run folder hold, and how is it read back? The files of the contract, written whole or not at all."""

from __future__ import annotations

import json
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from margincast.errors import InputError
from margincast.recipe.losses import LOSS_PARAMETERS, get_loss
from margincast.records import Pair, PairSet, SplitTrajectory, Text, Trajectory
from margincast.runs.metrics import concept_results, metric_rows
from margincast.runs.store import write_json, write_jsonl, write_tensors

SCHEMA_VERSION = 1
SUMMARY = "summary.json"


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


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, device and threads that made a result."""
    packages = ("margincast", "torch", "transformers", "numpy", "scipy", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in packages},
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
    }


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def data_summary(pairs: PairSet, train: PairSet, heldout: PairSet, data: str) -> dict[str, Any]:
    """What `pairs` hold and how they were split, with what was noticed while reading them."""
    return {
        "data": data,
        "fingerprint": {"train": train.fingerprint, "heldout": heldout.fingerprint},
        "concepts": {
            name: {"train": train.counts.get(name, 0), "heldout": heldout.counts.get(name, 0)}
            for name in pairs.concepts
        },
        "duplicates": len(pairs.duplicates),
        "skipped": list(pairs.skipped),
    }


def write_summary(
    folder: Path, command: str, config: dict[str, Any], results: dict[str, Any], **sections: Any
) -> dict[str, Any]:
    """Write `summary.json`, the last file of a run: a folder that has it is finished."""
    summary = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "config": config,
        "environment": environment(sections.pop("device", "cpu")),
        **sections,
        "results": results,
    }
    write_json(folder / SUMMARY, summary)
    return summary


def trajectory_results(trajectory: Trajectory, seconds: float) -> dict[str, Any]:
    return {
        "origin": trajectory.origin,
        "numerical_error": trajectory.error,
        "final": metric_rows(trajectory)[-1],
        "concepts": concept_results(trajectory),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def save_trajectory(folder: Path, trajectory: Trajectory) -> None:
    """Write `metrics.jsonl`, `margins.safetensors` and `pairs.jsonl`."""
    write_jsonl(folder / "metrics.jsonl", metric_rows(trajectory))
    tensors = {"steps": torch.tensor(trajectory.steps)}
    pairs: list[dict[str, Any]] = []
    for name, split in (("train", trajectory.train), ("heldout", trajectory.heldout)):
        tensors[name] = split.margins
        if split.chosen is not None:
            tensors[f"{name}_chosen"] = split.chosen
        pairs.extend(pair_row(pair, name) for pair in split.pairs)
    loss = get_loss(trajectory.loss_type, trajectory.beta, without_reference=True)
    metadata = {
        "beta": repr(trajectory.beta),
        "loss_type": loss.name,
        "loss_parameters": json.dumps(dict(loss.parameters)),
        "origin": trajectory.origin,
    }
    write_tensors(folder / "margins.safetensors", tensors, metadata)
    write_jsonl(folder / "pairs.jsonl", pairs)


def pair_row(pair: Pair, split: str) -> dict[str, Any]:
    return {
        "id": pair.id,
        "split": split,
        "concept": pair.concept,
        "source": pair.source,
        "line": pair.line,
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "statement": pair.statement,
    }


def load_run(folder: Path) -> Run:
    """Read a finished run. Raises `InputError` when `folder` is not one, saying what is missing."""
    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist")
    needed = (SUMMARY, "margins.safetensors", "pairs.jsonl")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is not a finished forecast or training run: {', '.join(missing)} not there")
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_bytes().splitlines()]
        tensors = load_file(folder / "margins.safetensors")
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
