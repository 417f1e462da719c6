"""Two runs side by side: a row for all held-out pairs and one for every concept."""

from __future__ import annotations

from collections.abc import Sequence

from margincast.comparison import Comparison
from margincast.report import tables
from margincast.results import PRESENTERS, Json, Presenter


def _results(comparison: Comparison) -> Json:
    concepts = {name: agreement.as_dict() for name, agreement in comparison.concepts.items()}
    return {"heldout": comparison.heldout.as_dict(), "concepts": concepts}


def _rows(comparison: Comparison) -> list[Json]:
    every = {"all": comparison.heldout, **comparison.concepts}
    return [{"concept": name, **agreement.as_dict()} for name, agreement in every.items()]


def _summary(comparison: Comparison) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"Step {comparison.a.steps[-1]}. A: {comparison.a.origin}. B: {comparison.b.origin}."
    return title, tables.AGREEMENT_HEADER, tables.agreement_rows(_results(comparison))


PRESENTERS.register("comparison")(Presenter(_rows, _summary))
