"""One run of one command: where its files go, what it prints, how it continues."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from margincast.errors import InputError
from margincast.processes import by_first, join, launched, process, processes
from margincast.runs.store import key_of, plain, write_text

NOT_SETTINGS = {"out", "json_", "quiet", "resume", "cache_dir"}
# Commands that several processes can share; of inspect and forecast it is the extraction.
SHARED = ("inspect", "forecast", "train", "reproduce")
# What a run has written before its first result. A folder of just this is left by one that failed there; it is free.
BEFORE_RESULTS = {"config.yaml", "features.safetensors", "features.manifest.json"}
KEPT = {"features.head.safetensors", "features.pairs.jsonl"}


@dataclass
class Job:
    """A command at work. `config` is what decides its numbers; `out` where its files go.

    Of several processes the first speaks and writes results, the others are silent.
    """

    command: str
    config: dict[str, Any]
    out: Path
    json: bool
    quiet: bool
    finished: bool
    started: float = field(default_factory=time.monotonic)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes results."""
        return process() == 0

    @property
    def progress(self) -> bool:
        """Whether to draw progress bars: only for a person who is watching."""
        return sys.stderr.isatty() and not self.quiet

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def say(self, text: str = "") -> None:
        if not (self.json or self.quiet):
            print(text)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the first column is text, the others numbers."""
        if self.json or self.quiet:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD)
        for number, name in enumerate(header):
            justify: Literal["left", "right"] = "left" if number == 0 else "right"
            table.add_column(Text(name), justify=justify, no_wrap=True, overflow="fold" if number else "ellipsis")
        for row in rows:
            table.add_row(*map(Text, row))
        # Piped output is for a file or another program: nothing there may be cut to the width of a window.
        console = Console() if sys.stdout.isatty() else Console(width=160)
        console.print(table)

    def done(self, summary: dict[str, Any]) -> None:
        """Print the end of the job: its summary as JSON, or where to look."""
        self.write_config()  # commands with nothing to continue leave it to here
        if self.json:
            print(json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False))
        else:
            self.say(f"Results: {self.out}")

    def stage(self, folder: str, command: str, **changes: Any) -> Job:
        """A job of `command` in a folder of this one, for a command made of commands."""
        settings = {**self.config, **changes}
        out = self.out / folder
        finished = _same_config(out, settings) and (out / "summary.json").is_file()
        job = Job(command, settings, out, json=False, quiet=self.quiet or self.json, finished=finished)
        job.write_config()
        return job

    def write_config(self) -> None:
        """Claim the folder for this run: to be called when the input is known to be good."""
        import yaml

        if self.main:
            write_text(self.out / "config.yaml", yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))


def open_job(command: str, parameters: dict[str, Any]) -> Job:
    """Start (or find again) the job of `command` with these parameters, the command function's arguments.

    Nothing is written yet, so that input found to be bad leaves no folder behind. Raises `InputError` when the folder
    to write to holds the results of something else, and for a command that a launcher cannot start several times.
    """
    if not launched():
        return _open(command, parameters)
    if command not in SHARED:
        raise InputError(f"{command} is one process; over several, as a launcher starts them: {', '.join(SHARED)}")
    join(parameters["device"])
    if command == "train":
        parameters = {**parameters, "processes": processes()}  # which share every step
    job = by_first(lambda: _open(command, parameters))
    return job if job.main else replace(job, json=False, quiet=True)


def _open(command: str, parameters: dict[str, Any]) -> Job:
    config = {name: _plain(value) for name, value in parameters.items() if name not in NOT_SETTINGS}
    out, resume = parameters["out"], parameters.get("resume", True)
    if out is None:
        out = _default_folder(command, config, resume)
    blocked = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if blocked:
        raise InputError(f"--out {out}: {blocked} is a file, not a folder")
    occupied = out.exists() and {path.name for path in out.iterdir()} - KEPT not in (set(), BEFORE_RESULTS)
    same = _same_config(out, config)
    if occupied and not same:
        raise InputError(f"--out {out} already holds something else; give another folder, or remove this one")
    if occupied and not resume:
        shutil.rmtree(out)
    finished = same and resume and (out / "summary.json").is_file()
    return Job(command, config, out, parameters["json_"], parameters["quiet"], finished)


def _default_folder(command: str, config: dict[str, Any], resume: bool) -> Path:
    tail = key_of([command, config])[:8]
    runs = Path("runs")
    unfinished = [path for path in sorted(runs.glob(f"{command}-*-{tail}*")) if not (path / "summary.json").is_file()]
    if unfinished and resume:
        return unfinished[-1]
    folder = runs / f"{command}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{tail}"
    return folder if not folder.exists() else folder.with_name(f"{folder.name}-{time.monotonic_ns() % 10**6:06d}")


def _same_config(out: Path, config: dict[str, Any]) -> bool:
    import yaml

    try:
        return bool(yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8")) == config)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
