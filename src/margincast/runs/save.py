"""How does a run write its results? Every file whole or not at all, `summary.json` last."""

from __future__ import annotations

import json
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from margincast.recipe.losses import get_loss
from margincast.records import Pair, PairSet, Trajectory
from margincast.results import Json
from margincast.runs.effects import effect_results
from margincast.runs.layout import HASHED, MARGINS, METRICS, PAIRS, SCHEMA_VERSION, SUMMARY
from margincast.runs.metrics import concept_results, displacement, metric_rows, response_results
from margincast.runs.store import file_sha256, write_json, write_jsonl, write_tensors
from margincast.version import VERSION


def environment(device: str = "cpu", dtype: str | None = None) -> Json:
    """Versions, device, dtype of the model and threads that made a result."""
    packages = ("torch", "transformers", "numpy", "scipy", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "packages": {"margincast": VERSION} | {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        **({} if dtype is None else {"dtype": dtype}),
        "threads": torch.get_num_threads(),
    }


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def data_summary(pairs: PairSet, train: PairSet, heldout: PairSet, data: str) -> Json:
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


def write_summary(folder: Path, command: str, config: Json, results: Json, **sections: Any) -> Json:
    """Write `summary.json`, the last file of a run's results: a folder that has it is finished.

    Its `files` are the SHA-256 of those written before it, by which a reader finds out which one was damaged since.
    """
    summary = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "config": config,
        "environment": environment(sections.pop("device", "cpu"), sections.pop("dtype", None)),
        **sections,
        "files": {name: file_sha256(folder / name) for name in HASHED if (folder / name).is_file()},
        "results": results,
    }
    write_json(folder / SUMMARY, summary)
    return summary


def trajectory_results(trajectory: Trajectory, rows: list[Json], seconds: float) -> Json:
    """rows: of `save_trajectory`"""
    return {
        "origin": trajectory.origin,
        "numerical_error": trajectory.error,
        "final": rows[-1],
        "concepts": concept_results(trajectory),
        "displacement": displacement(trajectory),
        "responses": response_results(trajectory),
        **effect_results(trajectory),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def save_trajectory(folder: Path, trajectory: Trajectory) -> list[Json]:
    """Write `metrics.jsonl`, whose rows are given back, `margins.safetensors` and `pairs.jsonl`."""
    rows = metric_rows(trajectory)
    write_jsonl(folder / METRICS, rows)
    tensors = {"steps": torch.tensor(trajectory.steps)}
    pairs: list[Json] = []
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
    write_tensors(folder / MARGINS, tensors, metadata)
    write_jsonl(folder / PAIRS, pairs)
    return rows


def pair_row(pair: Pair, split: str) -> Json:
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
