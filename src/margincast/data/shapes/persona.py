"""Anthropic Persona: question, answer_matching_behavior, answer_not_matching_behavior, and perhaps statement."""

from __future__ import annotations

from collections.abc import Mapping

from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, check_string

COLUMNS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")


def _persona(columns: Mapping[str, object]) -> Texts:
    question, matching, not_matching = (check_string(name, columns[name]) for name in COLUMNS)
    if not question:
        raise RowError("question is empty")
    statement = columns.get("statement")
    return Texts(
        prompt=question + "\n",  # as the paper's training script writes it
        chosen=matching,
        rejected=not_matching,
        statement=None if statement is None else check_string("statement", statement),
    )


SHAPES.register("persona")(Shape(COLUMNS, _persona, rank=1, title="persona", also=("statement",)))
