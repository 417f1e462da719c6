"""ms-swift's shape: messages that end with the chosen response, and the rejected response beside them."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import read_row
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, read_text

COLUMNS = ("messages", "rejected_response")


def _swift(columns: Mapping[str, object]) -> Texts:
    notes: list[str] = []
    messages = read_text("messages", columns["messages"], notes)
    if isinstance(messages, str) or not messages or messages[-1]["role"] != "assistant":
        raise RowError("messages must be a list of messages that ends with the assistant's chosen response")
    responses = {"chosen": [dict(messages[-1])], "rejected": columns["rejected_response"]}
    if isinstance(responses["rejected"], str):
        responses["chosen"] = messages[-1]["content"]
    return read_row({**columns, **responses}, messages[:-1], notes, chat=True)


SHAPES.register("swift")(Shape(COLUMNS, _swift, rank=4, title="ms-swift", also=("system",)))
