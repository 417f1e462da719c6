"""LLaMA-Factory's ShareGPT shape: conversations so far, and the chosen and the rejected message that follows."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import conversation, read_row
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import Texts

COLUMNS = ("conversations", "chosen", "rejected")


def _sharegpt(columns: Mapping[str, object]) -> Texts:
    notes: list[str] = []
    return read_row(columns, conversation(columns, "conversations", notes), notes, chat=True)


SHAPES.register("sharegpt")(
    Shape(COLUMNS, _sharegpt, rank=2, title="LLaMA-Factory", also=("system",), unless=("prompt",))
)
