"""margincast cache"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from margincast.cli.job import Job
from margincast.cli.options import InputOptions, OutputOptions, same
from margincast.cli.signature import Fixed
from margincast.errors import InputError
from margincast.recipe.fields import INPUT, option

if TYPE_CHECKING:
    from margincast.features.entries import Entry

GIB = 1 << 30
EVERYTHING = "all"
HEADER = ("name", "kind", "of", "size", "last used")


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Which cache, and what of it goes."""

    clear: str | None = option(None, "Remove the entry of this name, or all", INPUT)
    cache_limit: float | None = same(InputOptions, "cache_limit")
    cache_dir: Path | None = same(InputOptions, "cache_dir")


def cache(options: CacheOptions, output: Annotated[OutputOptions, Fixed({}, without=("out", "resume"))]) -> None:
    """List the features and models that are kept between runs, with their sizes, or remove some.

    Example: margincast cache --clear all
    """
    from margincast.features.entries import entries, shrink

    root = InputOptions(cache_dir=options.cache_dir).cache
    job = Job("cache", {}, root, json=output.json, quiet=output.quiet, finished=False)
    gone: list[Entry] = []
    if options.clear is not None:
        gone = clear(root, options.clear)
    if options.cache_limit is not None:
        gone += shrink(root, options.cache_limit * GIB, float("inf"))
    there = entries(root)
    if job.json:
        listed = [as_json(entry) for entry in there]
        print(json.dumps({"cache": str(root), "entries": listed, "removed": [entry.name for entry in gone]}, indent=2))
        return
    if gone:
        job.say(f"Removed {len(gone)} entries, {in_words(sum(entry.size for entry in gone))}.")
    total = in_words(sum(entry.size for entry in there))
    job.table(f"{root}: {len(there)} entries, {total}", HEADER, [row_of(entry) for entry in there])


def clear(root: Path, name: str) -> list[Entry]:
    """Remove the entry `name`, or with "all" all there are. Raises `InputError` for a name there is not, or that
    another process is at."""
    from margincast.features.entries import entries

    there = entries(root)
    wanted = [entry for entry in there if name in (EVERYTHING, entry.name)]
    if not wanted and name != EVERYTHING:
        names = ", ".join(entry.name for entry in there) or "it is empty"
        raise InputError(f"--clear {name}: nothing of that name is in {root} ({names})")
    gone = [entry for entry in wanted if entry.remove()]
    if len(gone) < len(wanted):
        kept = next(entry.name for entry in wanted if entry not in gone)
        raise InputError(f"--clear {name}: another process is making {kept}; removed {len(gone)} of {len(wanted)}")
    return gone


def row_of(entry: Entry) -> tuple[str, ...]:
    from datetime import datetime

    used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
    return entry.name, entry.kind, entry.about, in_words(entry.size), used


def as_json(entry: Entry) -> dict[str, str | int | float]:
    return {"name": entry.name, "kind": entry.kind, "of": entry.about, "bytes": entry.size, "used": entry.used}


def in_words(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
