"""OpenAI's shape for preference fine-tuning: input with messages, preferred_output, non_preferred_output."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import read_row, refuse_unsupported
from margincast.data.readers import shorten
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, read_text, structured

COLUMNS = ("input", "preferred_output", "non_preferred_output")


def _openai(columns: Mapping[str, object]) -> Texts:
    notes: list[str] = []
    asked = structured("input", columns["input"], notes)
    if isinstance(asked, Mapping):
        refuse_unsupported(asked)
        if "messages" not in asked:
            raise RowError(f"input must hold 'messages', got {shorten(asked)}")
        asked = asked["messages"]
    prompt = read_text("messages of input", asked, notes)
    responses = {"chosen": columns["preferred_output"], "rejected": columns["non_preferred_output"]}
    return read_row({**columns, **responses}, prompt, notes, chat=True)


SHAPES.register("openai")(Shape(COLUMNS, _openai, rank=2, title="OpenAI"))
