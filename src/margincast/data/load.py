"""How does a DATA argument become a `PairSet`, with every row accounted for?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Literal

from margincast.data.readers import Row, Source, shorten
from margincast.data.shapes import read_texts
from margincast.data.sources import find_sources
from margincast.data.texts import RowError, check_string
from margincast.errors import InputError
from margincast.records import Pair, PairSet, Text


def load_pairs(
    data: str | Path,
    *,
    persona_dir: str | Path | None = None,
    concept_column: str | None = None,
    on_bad_row: Literal["fail", "skip"] = "fail",
    revision: str | None = None,
) -> PairSet:
    """Read preference pairs from `data`, in order of files and rows.

    data: `traits`, `persona:NAME[,NAME…]` (also `persona:k1` … `persona:k16`, `persona:all`), a .jsonl, .parquet or
        .csv file or a folder of them, or `owner/name[:split]` on the Hub. The shapes of rows are those of `shapes`.
    persona_dir: folder of persona files; without one they come from the Hub
    concept_column: column that groups pairs into concepts, of strings or integers. Without it the concept is the file
        name without its extension (below a folder: the path within the folder), or the Hub data set's name.
    on_bad_row: "fail" raises an error that names the first bad row and counts the others; "skip" leaves bad rows out
        and lists each with its reason in `PairSet.skipped`. Problems of a whole file are errors under both.
    revision: commit, branch or tag of what is read from the Hub; local data have none

    A pair's id is "<file name without extension, or Hub name>:<line>". Rows that repeat an earlier prompt, chosen and
    rejected exactly are kept, and listed in `PairSet.duplicates`.

    Raises `InputError` for data that cannot be used, `StatedFailure` when the Hub is needed and cannot be reached.
    """
    if on_bad_row not in ("fail", "skip"):
        raise InputError(f"on_bad_row must be 'fail' or 'skip', got {on_bad_row!r}")
    pairs: list[Pair] = []
    bad: list[str] = []
    columns_found: dict[str, None] = {}
    personas = None if persona_dir is None else Path(persona_dir)
    for source in find_sources(str(data), personas, revision):
        line = 0
        for row in source.rows():
            line = row.line
            columns_found.update(dict.fromkeys(row.columns))
            try:
                pairs.append(_pair(row, source, concept_column))
            except RowError as error:
                bad.append(f"{source.name}, {source.unit} {row.line}: {error}")
        if line == 0:
            raise InputError(f"{source.name}: no rows")
    if concept_column is not None and columns_found and concept_column not in columns_found:
        found = ", ".join(map(shorten, columns_found))
        raise InputError(f"{data}: no row has the concept column {concept_column!r}; columns found: {found}")
    if bad and (on_bad_row == "fail" or not pairs):
        raise InputError(_bad_rows(bad, usable=len(pairs)))
    return PairSet(tuple(pairs), _duplicates(pairs), tuple(bad))


def _pair(row: Row, source: Source, concept_column: str | None) -> Pair:
    if row.problem:
        raise RowError(row.problem)
    texts = read_texts(row.columns)
    concept = source.label if concept_column is None else _concept(row.columns, concept_column)
    return Pair(
        id=f"{source.label}:{row.line}",
        concept=concept,
        prompt=texts.prompt,
        chosen=texts.chosen,
        rejected=texts.rejected,
        source=source.name,
        line=row.line,
        statement=texts.statement,
    )


def _concept(columns: Mapping[str, object], name: str) -> str:
    if name not in columns:
        raise RowError(f"concept column {name!r} is missing")
    value = columns[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"concept column {name!r} must hold a string or an integer, got {shorten(value)}")
    return check_string(f"concept column {name!r}", value)


def _bad_rows(bad: list[str], usable: int) -> str:
    more = f" (and {len(bad) - 1} more bad row{'s' if len(bad) > 2 else ''})" if len(bad) > 1 else ""
    if not usable:
        return f"{bad[0]}{more}; no usable row is left"
    return f"{bad[0]}{more}; correct the data or leave bad rows out with --on-bad-row skip"


def _duplicates(pairs: list[Pair]) -> tuple[tuple[str, str], ...]:
    first: dict[Hashable, str] = {}
    repeated: list[tuple[str, str]] = []
    for pair in pairs:
        content = tuple(_hashable(text) for text in (pair.prompt, pair.chosen, pair.rejected))
        original = first.setdefault(content, pair.id)
        if original != pair.id:
            repeated.append((original, pair.id))
    return tuple(repeated)


def _hashable(text: Text) -> Hashable:
    return text if isinstance(text, str) else tuple(frozenset(message.items()) for message in text)
