"""How does a result show and keep itself? As a data frame, a table in a notebook, a folder and a page.

A presenter, found by name, knows how: so a record can be shown without importing what shows it.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from margincast.errors import needed
from margincast.registry import Registry

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

# What JSON files hold: a summary, a row of a table. Values are looked at where the file's schema is known.
Json = dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """What a command knows of a result beside it, for its `summary.json`.

    config: the settings that decide its numbers;  sections: `data`, `model` and `device` they are of
    results: what goes beside the result's own: what the command took, which run it read
    """

    config: Json
    sections: Json
    results: Json


@dataclass(frozen=True)
class Presenter:
    """How a kind of result is shown and kept.

    rows: of its table;  summary: title, header and rows for a notebook
    save: into a folder, as its command does, giving the summary, or None; without provenance as called from Python
    """

    rows: Callable[[Any], list[Json]]
    summary: Callable[[Any], tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    save: Callable[[Any, Path, Provenance | None], Json] | None = None


PRESENTERS: Registry[Presenter] = Registry("presenter", "margincast.report.presenters", "margincast.presenters")


class Shown:
    """A result that shows itself: as a data frame, and in a notebook."""

    presenter: ClassVar[str]

    def to_pandas(self) -> pandas.DataFrame:
        """Its table: a row per pair and step, concept, training pair, run, recorded time or reading of the theorems."""
        frames = needed("pandas", "to_pandas()")
        return cast("pandas.DataFrame", frames.DataFrame(PRESENTERS.get(self.presenter).rows(self)))

    def _repr_html_(self) -> str:
        title, header, rows = PRESENTERS.get(self.presenter).summary(self)

        def line(kind: str, cells: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row) for row in rows)
        return f"<table><caption>{html.escape(title)}</caption>{line('th', header)}{body}</table>"


class Result(Shown):
    """What a command finds: also keeps itself, as the folder that the command leaves, and as one page."""

    def save(self, folder: str | Path) -> None:
        """Leave what its command leaves: `summary.json`, `report.html`, figures, and the files of its own.

        `margincast report` reads the folder; that of a `Trajectory` is read by `load_run` and `margincast compare` too.
        """
        self.keep(Path(folder))

    def keep(self, folder: Path, provenance: Provenance | None = None) -> Json:
        """`save`, with what a command knows beside the result; gives the summary."""
        save = PRESENTERS.get(self.presenter).save
        assert save is not None  # of every result that keeps itself
        return save(self, folder, provenance)

    def report(self, path: str | Path) -> None:
        """Write one self-contained HTML page: figures, tables and what they mean."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / Path(path).stem  # whose name is the page's title where nothing else is
            self.save(folder)
            page = (folder / "report.html").read_text(encoding="utf-8")
        Path(path).write_text(page, encoding="utf-8")
