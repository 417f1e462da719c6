"""What did margincast take the data for? In one line, so that a wrong reading is seen before anything is computed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from margincast.data.texts import Texts


def describe(rows: Sequence[Texts]) -> str:
    """The shapes of the rows, with how many there are and how they talk, and what was not read as it stands."""
    by_shape: dict[str, list[Texts]] = defaultdict(list)
    for row in rows:
        by_shape[row.shape].append(row)
    return "; ".join(_one_shape(shape, of_shape) for shape, of_shape in by_shape.items())


def _one_shape(shape: str, rows: Sequence[Texts]) -> str:
    turns = [0 if isinstance(row.prompt, str) else len(row.prompt) for row in rows]
    several, one, text = sum(turn > 1 for turn in turns), turns.count(1), turns.count(0)
    kinds = [(several, "with several turns"), (one, "with one"), (text, "of text")]
    said = ", ".join(f"{count} {kind}" for count, kind in kinds if count)
    if one and not several:
        said = said.replace("with one", "with one turn")
    if len(rows) in (several, one, text):  # all alike
        said = said.partition(" ")[2]
        said = f"{len(rows)} pairs {said}" if len(rows) > 1 else f"1 pair {said}"
    else:
        said = f"{len(rows)} pairs, {said}"
    notes = Counter(note for row in rows for note in row.notes)
    done = "; ".join(note if count == len(rows) else f"{note} in {count}" for note, count in notes.items())
    return f"{shape} shape: {said}" + (f" ({done})" if done else "")
