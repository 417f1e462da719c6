"""How does a result become the folder that its command leaves? Its own files, then `summary.json`, then the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from margincast.report.sections import write_page
from margincast.results import Json, Provenance
from margincast.runs.save import write_summary

T = TypeVar("T")


@dataclass(frozen=True)
class Contents:
    """What a result says of itself in `summary.json`. config, sections: where no command says more of them"""

    command: str
    results: Json
    config: Json = field(default_factory=dict)
    sections: Json = field(default_factory=dict)


def saving(leave: Callable[[T, Path], Contents]) -> Callable[[T, Path, Provenance | None], Json]:
    """The `save` of a presenter, from what leaves a result's own files and figures in a folder."""

    def save(result: T, folder: Path, provenance: Provenance | None = None) -> Json:
        contents = leave(result, folder)
        given = provenance or Provenance(contents.config, contents.sections, {})
        results = {**contents.results, **given.results}
        summary = write_summary(folder, contents.command, given.config, results, **given.sections)
        write_page(folder)
        return summary

    return save
