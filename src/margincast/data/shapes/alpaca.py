"""LLaMA-Factory's alpaca shape: an instruction with its input, perhaps a system text and what was said before."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.joining import read_row
from margincast.data.readers import shorten
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, check_string, message, parse_written
from margincast.records import Message

COLUMNS = ("instruction", "chosen", "rejected")


def _alpaca(columns: Mapping[str, object]) -> Texts:
    asked = [check_string(name, columns[name]) for name in ("instruction", "input") if columns.get(name) is not None]
    asked = [text for text in asked if text]
    if not asked:
        raise RowError("instruction is empty")
    notes = ["'input' follows 'instruction' on a line of its own"] if len(asked) > 1 else []
    # LLaMA-Factory joins the two so, and trains on what the chat template makes of them.
    return read_row(columns, (*_history(columns.get("history")), *message("user", "\n".join(asked))), notes, chat=True)


def _history(value: object) -> tuple[Message, ...]:
    """Pairs of what the user and the assistant said before; None and an empty string are nothing."""
    if isinstance(value, str):
        value = parse_written("history", value) if value.strip() else []
    turns = [] if value is None else value
    if not isinstance(turns, (list, tuple)):
        raise RowError(f"history must be a list of pairs [asked, answered], got {shorten(value)}")
    said: tuple[Message, ...] = ()
    for k, turn in enumerate(turns, start=1):
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise RowError(f"turn {k} of history must be a pair [asked, answered], got {shorten(turn)}")
        asked, answered = (check_string(f"turn {k} of history", text) for text in turn)
        said = (*said, *message("user", asked), *message("assistant", answered))
    return said


SHAPES.register("alpaca")(
    Shape(
        COLUMNS, _alpaca, rank=5, title="LLaMA-Factory alpaca", also=("input", "history", "system"), unless=("prompt",)
    )
)
