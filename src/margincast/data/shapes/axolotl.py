"""axolotl's `chat_template` shape: messages so far, and the chosen and the rejected message that follows."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import read_row
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, read_text

COLUMNS = ("messages", "chosen", "rejected")


def _axolotl(columns: Mapping[str, object]) -> Texts:
    notes: list[str] = []
    prompt = read_text("messages", columns["messages"], notes)
    if isinstance(prompt, str):
        raise RowError("messages must be a list of messages; a text is a 'prompt'")
    return read_row(columns, prompt, notes, chat=True)


SHAPES.register("axolotl")(Shape(COLUMNS, _axolotl, rank=3, title="axolotl", also=("system",), unless=("prompt",)))
