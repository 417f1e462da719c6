"""One margin as a sum: a row per training pair, and in a notebook those that matter most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from margincast.report.tables import number
from margincast.results import PRESENTERS, Json, Presenter

if TYPE_CHECKING:
    from margincast.frozen.attribution.of_pair import PairAttribution

SHOWN = 10  # in a notebook


def _rows(found: PairAttribution) -> list[Json]:
    return [
        {"id": pair.id, "concept": pair.concept, "contribution": value}
        for pair, value in zip(found.pairs, found.values.tolist(), strict=True)
    ]


def _summary(found: PairAttribution) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = (
        f"{found.id} ({found.split}), step {found.step}: margin {number(found.margin)} as a sum over "
        f"{len(found.pairs)} training pairs, those that matter most"
    )
    top = found.top(min(SHOWN, len(found.pairs)))
    rows = [[each.pair.id, each.pair.concept, number(each.value)] for each in top]
    return title, ("training pair", "concept", "contribution"), rows


PRESENTERS.register("pair_attribution")(Presenter(_rows, _summary))
