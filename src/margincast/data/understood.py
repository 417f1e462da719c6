"""What did margincast take the data for? In one line, so that a wrong reading is seen before anything is computed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from margincast.data.texts import Texts

SEVERAL, WITH_SYSTEM, ONE, TEXT = "with several turns", "with a system message and one turn", "with one turn", "of text"


def describe(rows: Sequence[Texts]) -> str:
    """The shapes of the rows, with how many there are and how they talk, and what was not read as it stands."""
    by_shape: dict[str, list[Texts]] = defaultdict(list)
    for row in rows:
        by_shape[row.shape].append(row)
    return "; ".join(_one_shape(shape, of_shape) for shape, of_shape in by_shape.items())


def _one_shape(shape: str, rows: Sequence[Texts]) -> str:
    kinds = Counter(map(_kind, rows))
    count = f"{len(rows)} pairs" if len(rows) > 1 else "1 pair"
    if len(kinds) == 1:
        said = f"{count} {next(iter(kinds))}"
    else:
        several, with_system = kinds[SEVERAL] + kinds[WITH_SYSTEM], kinds[WITH_SYSTEM]
        among = f" ({with_system} of them {WITH_SYSTEM.removeprefix('with ')})" if with_system else ""
        parts = [(several, f"with several turns{among}"), (kinds[ONE], "with one"), (kinds[TEXT], TEXT)]
        said = ", ".join([count, *(f"{number} {kind}" for number, kind in parts if number)])
    notes = Counter(note for row in rows for note in row.notes)
    done = "; ".join(note if count == len(rows) else f"{note} in {count}" for note, count in notes.items())
    return f"{shape} shape: {said}" + (f" ({done})" if done else "")


def _kind(row: Texts) -> str:
    if isinstance(row.prompt, str):
        return TEXT
    if len(row.prompt) == 1:
        return ONE
    return WITH_SYSTEM if [message["role"] for message in row.prompt] == ["system", "user"] else SEVERAL
