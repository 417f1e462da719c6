"""One run of one command: where its files go, what it prints, how it continues."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from margincast.cli.conditions import Condition, check, check_concepts, conditions_of
from margincast.cli.launch import by_deepspeed, launched
from margincast.errors import InputError
from margincast.processes import DEEPSPEED, by_first, join, process, processes
from margincast.recipe.fields import options_of
from margincast.results import Json, Provenance, Result
from margincast.runs.layout import (
    CONFIG,
    FEATURES,
    FEATURES_HEAD,
    FEATURES_MANIFEST,
    FEATURES_PAIRS,
    LOCK,
    RUN_FILES,
    RUN_FOLDERS,
)
from margincast.runs.store import key_of, plain, write_text
from margincast.shown import harmless

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from margincast.cli.options import OutputOptions
    from margincast.recipe.recipe import Recipe

# Commands that several processes can share; of inspect and forecast it is the extraction.
SHARED = ("inspect", "forecast", "train", "reproduce")
# Seconds without a write after which nobody is writing a part any more.
ABANDONED = 3600.0


@dataclass
class Job:
    """A command at work. `config` is what decides its numbers; `out` where its files go.

    finished: all of it was done before;  anew: what the folder holds goes when the input is known to be good
    conditions: under which the command fails when all is written

    Of several processes the first speaks and writes results, the others are silent.
    """

    command: str
    config: Json
    out: Path
    json: bool
    quiet: bool
    finished: bool
    anew: bool = False
    conditions: tuple[Condition, ...] = ()
    started: float = field(default_factory=time.monotonic)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes results."""
        return process() == 0

    @property
    def progress(self) -> bool:
        """Whether to draw progress bars: only for a person who is watching."""
        return sys.stderr is not None and sys.stderr.isatty() and not self.quiet

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def say(self, text: str = "") -> None:
        if not (self.json or self.quiet):
            print(harmless(text))

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the first column is text, the others numbers."""
        if self.json or self.quiet:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(harmless(title)) if title else None, title_justify="left", box=box.SIMPLE_HEAD)
        for number, name in enumerate(header):
            justify: Literal["left", "right"] = "left" if number == 0 else "right"
            table.add_column(
                Text(harmless(name)), justify=justify, no_wrap=True, overflow="fold" if number else "ellipsis"
            )
        for row in rows:
            table.add_row(*(Text(harmless(cell)) for cell in row))
        # Piped output is for a file or another program: nothing there may be cut to the width of a window.
        watched = sys.stdout is not None and sys.stdout.isatty()  # None where it was closed
        console = Console() if watched else Console(width=160)
        console.print(table)

    def check_concepts(self, concepts: Iterable[str]) -> None:
        """Raises `InputError` where a condition is of none of the data's concepts."""
        check_concepts(self.conditions, concepts)

    def keep(self, result: Result, sections: Json | None = None, **beside: Any) -> Json:
        """Save a result in this job's folder, with settings, what it took and what is `beside` it; its summary."""
        from margincast.runs.save import peak_memory_bytes

        beside |= {"seconds": self.seconds, "peak_memory_bytes": peak_memory_bytes()}
        return result.keep(self.out, Provenance(self.config, sections or {}, beside))

    def done(self, summary: Json) -> None:
        """Print the end of the job: its summary as JSON, or where to look.

        Raises `ConditionHolds` where a result is as `--fail-if` says.
        """
        self.write_config()  # commands with nothing to continue leave it to here
        if self.json:
            print(json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False))
        else:
            self.say(f"Results: {self.out}")
        if self.main:
            check(self.conditions, summary.get("results", {}))

    def stage(self, folder: str, command: str, *records: DataclassInstance, **settings: Any) -> Job:
        """A job of `command` in a folder of this one, for a command made of commands."""
        config, out = config_of(*records, **settings), self.out / folder
        finished = _same_config(out, config) and (out / "summary.json").is_file()
        job = Job(command, config, out, json=False, quiet=self.quiet or self.json, finished=finished)
        job.write_config()
        return job

    def say_defaults(self, recipe: Recipe) -> None:
        """Where the paper's defaults are used and TRL has others, and what is forecast as something else: once, before
        anything else."""
        from margincast.recipe.recipe import departures

        if said := departures(recipe):
            self.say(said)
        if self.command != "train" and recipe.rule.in_forecasts != recipe.rule:
            self.say(f"{recipe.optimizer} is forecast as {type(recipe.rule.in_forecasts).__name__}")

    def write_config(self) -> None:
        """Claim the folder for this run: to be called when the input is known to be good."""
        import yaml

        if self.main and self.anew:
            _clear(self.out)
        self.anew = False
        if self.main:
            _forget_parts(self.out)
            write_text(self.out / "config.yaml", yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))


def config_of(*records: DataclassInstance, **settings: Any) -> Json:
    """What decides a command's numbers: `settings`, then those of the records, as YAML can hold them."""
    config = dict(settings)
    for record in records:
        named = ((name, each) for name, each in options_of(type(record)).items() if each.setting)
        config |= {name.rstrip("_"): getattr(record, name) for name, _ in named}
    return {name: str(value) if isinstance(value, Path) else value for name, value in config.items()}


def open_job(command: str, output: OutputOptions, *records: DataclassInstance, **settings: Any) -> Job:
    """Start (or find again) the job of `command` with the settings in `records` and `settings`.

    Nothing is written yet, so that input found to be bad leaves no folder behind. Raises `InputError` when the folder
    to write to holds the results of something else, and for a command that a launcher cannot start several times, and
    under DeepSpeed.
    """
    if by_deepspeed():
        raise InputError(DEEPSPEED)
    config = config_of(*records, **settings)
    conditions = conditions_of(getattr(output, "fail_if", None) or (), command, config)
    if not launched():
        return replace(_open(command, output, config), conditions=conditions)
    if command not in SHARED:
        raise InputError(f"{command} is one process; over several, as a launcher starts them: {', '.join(SHARED)}")
    from margincast.models.device import resolve_device

    join(resolve_device(config["device"]))
    if command == "train":
        config["processes"] = processes()  # which share every step
    job = replace(by_first(lambda: _open(command, output, config)), conditions=conditions)
    return job if job.main else replace(job, json=False, quiet=True)


def _open(command: str, output: OutputOptions, config: Json) -> Job:
    out = output.out or _default_folder(command, config, output.resume)
    blocked = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if blocked:
        raise InputError(f"--out {out}: {blocked} is a file, not a folder")
    there = {path.name for path in out.iterdir()} - {FEATURES_HEAD, FEATURES_PAIRS, LOCK} if out.exists() else set()
    # A folder of no more than what comes before results is left by a run that failed there; it is free.
    occupied = there not in (set(), {CONFIG, FEATURES, FEATURES_MANIFEST})
    same = _same_config(out, config)
    if occupied and not same:
        raise InputError(f"--out {out} already holds something else; give another folder, or remove this one")
    finished = same and output.resume and (out / "summary.json").is_file()
    return Job(command, config, out, output.json, output.quiet, finished, anew=occupied and not output.resume)


def _clear(folder: Path) -> None:
    """Remove what a run leaves in its folder: files of its results, and the folders of its parts."""
    for path in folder.iterdir():
        if path.is_dir() and (path.name in RUN_FOLDERS or (path / CONFIG).is_file()):
            shutil.rmtree(path)
        elif path.name in RUN_FILES:
            path.unlink()


def _forget_parts(folder: Path) -> None:
    """Remove what a process that was killed left half-written; another one may be writing the younger parts now."""
    for part in folder.glob(".*.part"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()


def _default_folder(command: str, config: Json, resume: bool) -> Path:
    tail = key_of([command, config])[:8]
    runs = Path("runs")
    unfinished = [path for path in sorted(runs.glob(f"{command}-*-{tail}*")) if not (path / "summary.json").is_file()]
    if unfinished and resume:
        return unfinished[-1]
    folder = runs / f"{command}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{tail}"
    return folder if not folder.exists() else folder.with_name(f"{folder.name}-{time.monotonic_ns() % 10**6:06d}")


def _same_config(out: Path, config: Json) -> bool:
    import yaml

    try:
        return bool(yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8")) == config)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False
