"""TRL's shapes: prompt, chosen, rejected; or chosen and rejected that both begin with the prompt."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import read_row
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import Texts, read_text


def _preference(columns: Mapping[str, object]) -> Texts:
    notes: list[str] = []
    prompt = read_text("prompt", columns["prompt"], notes) if "prompt" in columns else None
    return read_row(columns, prompt, notes)


SHAPES.register("preference")(
    Shape(("chosen", "rejected"), _preference, rank=7, title="TRL", also=("prompt", "system"))
)
