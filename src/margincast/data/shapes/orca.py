"""The shape of Intel's Orca pairs: a question, perhaps a system text before it, chosen and rejected."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import read_row
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import Texts, read_text

COLUMNS = ("question", "chosen", "rejected")


def _orca(columns: Mapping[str, object]) -> Texts:
    notes: list[str] = []
    return read_row(columns, read_text("question", columns["question"], notes), notes)


SHAPES.register("orca")(Shape(COLUMNS, _orca, rank=6, title="Orca", also=("system",), unless=("prompt", "instruction")))
