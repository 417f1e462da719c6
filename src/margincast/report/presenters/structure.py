"""The structure of embeddings: cosines between concepts, raw and without their mean."""

from __future__ import annotations

from collections.abc import Sequence

from margincast.records import PRESENTERS, Json, Presenter
from margincast.report.tables import number
from margincast.structure import Structure


def _rows(structure: Structure) -> list[Json]:
    raw, centred = structure.raw["both"].tolist(), structure.centred_["matching"].tolist()
    return [
        {"concept": one, "other": other, "cosine_raw": raw[i][j], "cosine_centred": centred[i][j]}
        for i, one in enumerate(structure.concepts)
        for j, other in enumerate(structure.concepts)
    ]


def _summary(structure: Structure) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"{structure.pairs} pairs of width {structure.hidden}: cosines between concepts, centred"
    rows = [
        [name, *map(number, row)]
        for name, row in zip(structure.concepts, structure.centred_["matching"].tolist(), strict=True)
    ]
    return title, ("concept", *structure.concepts), rows


PRESENTERS.register("structure")(Presenter(_rows, _summary))
