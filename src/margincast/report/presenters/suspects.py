"""Suspect pairs: a row per training pair, and how many are flagged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from margincast.results import PRESENTERS, Json, Presenter


def _rows(suspects: Any) -> list[Json]:
    return [dict(row) for row in suspects.issues]


def _summary(suspects: Any) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    found = suspects.summary()
    rows = [[kind, str(count), found["meanings"][kind]] for kind, count in found["counts"].items()]
    return f"Suspects among {found['pairs']} training pairs", ("issue", "flagged", "what its score means"), rows


PRESENTERS.register("suspects")(Presenter(_rows, _summary))
