"""Topics: a row for each, with its pairs and the words that tell it from the others."""

from __future__ import annotations

from collections.abc import Sequence

from margincast.report.tables import number
from margincast.results import PRESENTERS, Json, Presenter
from margincast.structure.topics import Topics

SHOWN = 8  # words


def _rows(topics: Topics) -> list[Json]:
    return [
        {"topic": name, "train": train, "heldout": heldout, "words": dict(words[:SHOWN])}
        for name, words, (train, heldout) in zip(topics.names, topics.words, topics.sizes, strict=True)
    ]


def _summary(topics: Topics) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"{len(topics.names)} topics of {len(topics.train)} training and {len(topics.heldout)} held-out pairs"
    chosen = next((row for row in topics.stability if row.count == len(topics.names)), None)
    if chosen is not None:
        title += f"; halves agree to {number(chosen.agreement, 2)}, to {number(chosen.chance, 2)} without clusters"
    rows = [[row["topic"], str(row["train"]), str(row["heldout"]), ", ".join(row["words"])] for row in _rows(topics)]
    return title, ("topic", "training pairs", "held-out pairs", "telling words"), rows


PRESENTERS.register("topics")(Presenter(_rows, _summary))
