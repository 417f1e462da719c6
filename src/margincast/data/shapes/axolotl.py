"""axolotl's `chat_template` shape: messages so far, and the chosen and the rejected message that follows."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import conversation, read_row
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import Texts

COLUMNS = ("messages", "chosen", "rejected")


def _axolotl(columns: Mapping[str, object]) -> Texts:
    notes: list[str] = []
    return read_row(columns, conversation(columns, "messages", notes), notes, chat=True)


SHAPES.register("axolotl")(Shape(COLUMNS, _axolotl, rank=3, title="axolotl", also=("system",), unless=("prompt",)))
