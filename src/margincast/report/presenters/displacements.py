"""Whose likelihoods fall: a row per pair, and the folder of `decompose --all`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.report import decomposition as shown
from margincast.report.figures import save_figure
from margincast.report.saving import Contents, saving
from margincast.results import PRESENTERS, Json, Presenter
from margincast.runs.layout import DISPLACEMENT
from margincast.runs.store import write_jsonl

if TYPE_CHECKING:
    from margincast.frozen.tokens.displacement import Displacements

WORST = 8  # training pairs in the summary


def _rows(found: Displacements) -> list[Json]:
    return found.rows()


def _summary(found: Displacements) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"Changes of log pi over {found.steps} steps"
    return title, shown.DISPLACEMENT_HEADER, shown.displacement_rows({"splits": _splits(found)})


def _leave(found: Displacements, folder: Path) -> Contents:
    rows = found.rows()
    write_jsonl(folder / DISPLACEMENT, sorted(rows, key=lambda row: row["forecast_delta_logp_chosen"]))
    save_figure(shown.displaced(rows), folder / "figures", "displacement")
    blamed = sorted((row for row in rows if row["split"] == "train"), key=lambda row: row["blame"])
    results: Json = {
        "origin": found.origin,
        "steps": found.steps,
        "splits": _splits(found),
        "worst_pairs": blamed[:WORST],
        "worst_tokens": [asdict(token) for token in found.worst_tokens],
        "exported": found.exported and asdict(found.exported),
    }
    return Contents("decompose", results)


def _splits(found: Displacements) -> Json:
    return {"train": asdict(found.train.falls), "heldout": asdict(found.heldout.falls)}


PRESENTERS.register("displacements")(Presenter(_rows, _summary, saving(_leave)))
