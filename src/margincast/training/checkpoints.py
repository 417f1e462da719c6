"""From which checkpoint can an interrupted run go on, to the same end? From the newest that is whole.

A checkpoint is sealed when its last file is written: the length and CRC-32 of every file, which a damaged or missing
one does not have. It is of use only with the margins of all steps before it, which are not made again.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from margincast.runs.store import write_json

SEAL = "seal.json"
KEPT = 2  # the newest, and one to go back to
CHUNK = 1 << 22


def seal(folder: Path) -> None:
    """Say what the files of a checkpoint are."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL)
    write_json(folder / SEAL, {path.relative_to(folder).as_posix(): _sum(path) for path in files})


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def last_checkpoint(state: Path, missing: Callable[[int], Iterable[int]], say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint in `state` that a run can go on from; others are removed, and `say` gets a line for each.

    missing: the steps up to one that should be recorded and are not
    """
    for folder in sorted(state.glob("checkpoint-*"), key=step_of, reverse=True):
        problem = _damage(folder)
        lost = list(missing(step_of(folder)))
        if problem is None and not lost:
            return folder
        why = problem or f"the margins of step {lost[0]} are not there"
        say(f"{folder} cannot be used: {why}; the run goes on from an earlier one, or from the start")
        shutil.rmtree(folder)
    return None


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        for name, known in sealed.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sum(folder / name) != known:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError):
        return "it was not finished"
    return None


def _sum(path: Path) -> list[int]:
    total, size = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total, size = zlib.crc32(chunk, total), size + len(chunk)
    return [size, total]
