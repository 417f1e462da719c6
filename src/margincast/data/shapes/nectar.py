"""Ranked answers, as Nectar has them: prompt and a list of answers, each with its text and rank. Best against worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from margincast.data.joining import read_row
from margincast.data.readers import shorten
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, read_text, structured

COLUMNS = ("prompt", "answers")


def _ranked(columns: Mapping[str, object]) -> Texts:
    notes = ["of ranked answers the first is chosen and the last rejected"]
    answers = structured("answers", columns["answers"], notes)
    if isinstance(answers, (Mapping, str)) or not isinstance(answers, Sequence) or not answers:
        raise RowError(f"answers must be a list of answers with ranks, got {shorten(answers)}")
    for answer in answers:
        rank = answer.get("rank") if isinstance(answer, Mapping) else None
        if not isinstance(rank, (int, float)) or not math.isfinite(rank) or "answer" not in answer:
            raise RowError(f"an answer must have 'answer' and a number 'rank', got {shorten(answer)}")
    best, worst = min(answers, key=lambda each: each["rank"]), max(answers, key=lambda each: each["rank"])
    if best["rank"] == worst["rank"]:
        raise RowError("all answers have the same rank: none is preferred")
    prompt = read_text("prompt", columns["prompt"], notes)
    return read_row({**columns, "chosen": best["answer"], "rejected": worst["answer"]}, prompt, notes)


SHAPES.register("nectar")(Shape(COLUMNS, _ranked, title="ranked answers (Nectar)"))
