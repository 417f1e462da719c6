"""What moves one pair's rewards: a row per training pair that does, and the folder of `decompose --pair`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.report import decomposition as shown
from margincast.report.figures import save_figure
from margincast.report.saving import Contents, saving
from margincast.report.tables import number
from margincast.results import PRESENTERS, Json, Presenter

if TYPE_CHECKING:
    from margincast.frozen.tokens.pushes import Decomposition


def _rows(found: Decomposition) -> list[Json]:
    return [
        {"id": pair.id, "margin": pair.margin, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in found.training_pairs
    ]


def _summary(found: Decomposition) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"Training pairs that push the margin of {found.pair}, which moves at {number(found.rates.margin)}"
    return title, shown.PAIR_HEADER, shown.pair_rows(_rows(found))


def _leave(found: Decomposition, folder: Path) -> Contents:
    results = asdict(found)
    results["rates"]["margin"], results["start"]["margin"] = found.rates.margin, found.start.margin
    save_figure(shown.pushes(results["training_tokens"]), folder / "figures", "pushes")
    return Contents("decompose", results)


PRESENTERS.register("decomposition")(Presenter(_rows, _summary, saving(_leave)))
