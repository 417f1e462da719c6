"""LLaMA-Factory's ShareGPT shape: conversations so far, and the chosen and the rejected message that follows."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import read_row
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, read_text

COLUMNS = ("conversations", "chosen", "rejected")


def _sharegpt(columns: Mapping[str, object]) -> Texts:
    notes: list[str] = []
    prompt = read_text("conversations", columns["conversations"], notes)
    if isinstance(prompt, str):
        raise RowError("conversations must be a list of messages; a text is a 'prompt'")
    return read_row(columns, prompt, notes, chat=True)


SHAPES.register("sharegpt")(
    Shape(COLUMNS, _sharegpt, rank=2, title="LLaMA-Factory", also=("system",), unless=("prompt",))
)
