"""What is kept of a run folder? Every number and verdict of its results; long lists and arrays as a few sums."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# What differs from call to call, from machine to machine, holds a folder's name, or is said in words.
LEFT_OUT = {
    "seconds",
    "peak_memory_bytes",
    "environment",
    "config",
    "file",
    "files",
    "run",
    "a",
    "b",
    "setting",
    "hash",
    "notes",
    "says",
}
LONG = 4  # numbers of a list that are kept one by one

Value = float | str | bool | None


def digest(folder: Path) -> dict[str, Value]:
    """Numbers of every file of results below `folder`, by file and key."""
    found: dict[str, Value] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if "/features." in f"/{name}" or "/state/" in f"/{name}":
            continue
        if path.name == "summary.json":
            found |= flat(name, json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".jsonl" and path.name not in ("pairs.jsonl", "train_log.jsonl"):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found |= rows_of(name, rows)
        elif path.suffix == ".safetensors":
            found |= {f"{name}:{key}:{part}": value for key, tensor in load_file(path).items() for part, value in
                      sums(tensor.double().flatten().tolist())}  # fmt: skip
    return found


def flat(name: str, value: Any) -> dict[str, Value]:
    return dict(_leaves(name, value))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Value]]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in LEFT_OUT:
                yield from _leaves(f"{name}:{key}", each)
    elif isinstance(value, list):
        numbers = [each for each in value if isinstance(each, (int, float)) and not isinstance(each, bool)]
        if len(numbers) == len(value) > LONG:
            yield from ((f"{name}:{part}", number) for part, number in sums(numbers))
        else:
            for index, each in enumerate(value[:LONG]):
                yield from _leaves(f"{name}[{index}]", each)
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, str(value)
    else:
        yield name, value


def rows_of(name: str, rows: list[dict[str, Any]]) -> dict[str, Value]:
    """A table by columns: the sums of its numbers."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                columns.setdefault(key, []).append(float(value))
    kept: dict[str, Value] = {f"{name}:rows": len(rows)}
    for key, values in columns.items():
        kept |= {f"{name}:{key}:{part}": value for part, value in sums(values)}
    return kept


def sums(values: list[float]) -> Iterator[tuple[str, Value]]:
    """The sum of the numbers' sizes, and one that knows their order and signs."""
    numbers = torch.tensor(values, dtype=torch.float64)
    weights = torch.linspace(1.0, 2.0, len(values), dtype=torch.float64)
    yield "size", _number(float(numbers.abs().sum()))
    yield "ordered", _number(float((numbers * weights).sum()))


def _number(value: float) -> Value:
    return value if math.isfinite(value) else str(value)
