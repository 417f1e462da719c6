"""How does a DATA argument become a `PairSet`, with every row accounted for?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from margincast.data.hints import advice, advice_on_unused, refuse_headless
from margincast.data.readers import Row, Source, shorten
from margincast.data.shapes import Shape, UnknownShapeError, UnusedError, read_texts, recognise
from margincast.data.sources import Where, find_sources
from margincast.data.splits import TRL_DEFAULT
from margincast.data.texts import RowError, Texts, check_string
from margincast.data.understood import describe
from margincast.errors import InputError
from margincast.records import Pair, PairSet, Text

if TYPE_CHECKING:
    import datasets
    import pandas  # type: ignore[import-untyped]


def load_pairs(
    data: str | Path | datasets.Dataset | datasets.DatasetDict | pandas.DataFrame | Sequence[Mapping[str, object]],
    *,
    heldout: str | Path | datasets.Dataset | pandas.DataFrame | Sequence[Mapping[str, object]] | None = None,
    dataset_test_split: str | None = None,
    persona_dir: str | Path | None = None,
    concept_column: str | None = None,
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    on_bad_row: Literal["fail", "skip"] = "fail",
    revision: str | None = None,
) -> PairSet:
    """Read preference pairs from `data`, in order of files and rows.

    data: `traits`, `persona:NAME[,NAME…]` (also `persona:k1` … `persona:k16`, `persona:all`), a .jsonl, .json,
        .parquet, .arrow, .csv or .tsv file (also .gz, .zst, .xz or .bz2), a folder of them or of `save_to_disk`,
        `owner/name[:split]` on the Hub, several of these joined by " + ", or a table in memory, of rows as in `shapes`
    heldout: held-out pairs of one's own, as `data`; those of `data` are then for training
    dataset_test_split: the part of `data` that is held out, by its name; without it the files `test` (or
        `validation`) of a folder that has `train` too, and of the Hub nothing. "test", which is TRL's default, may be
        missing: that is noted
    persona_dir: folder of persona files; without one they come from the Hub
    concept_column: column that groups pairs into concepts, of strings or integers. Without it the concept is the file
        name without its extension (below a folder: the path within the folder), or the Hub data set's name.
    prompt_column, chosen_column, rejected_column: which columns are the prompt and the responses, whatever they are
        called; other columns that look like a prompt then stay unused, which is noted
    on_bad_row: "fail" raises an error that names the first bad row and counts the others; "skip" leaves bad rows out
        and lists each with its reason in `PairSet.skipped`. Problems of a whole file are errors under both.
    revision: commit, branch or tag of what is read from the Hub; local data have none

    A pair's id is "<file name without extension, Hub name or memory>:<line>". Rows that repeat an earlier prompt,
    chosen and rejected exactly are kept, and listed in `PairSet.duplicates`; how rows were understood, and what of a
    folder was not read, in `PairSet.notes`.

    Raises `InputError` for data that cannot be used, `StatedFailure` when the Hub is needed and cannot be reached.
    """
    if on_bad_row not in ("fail", "skip"):
        raise InputError(f"on_bad_row must be 'fail' or 'skip', got {on_bad_row!r}")
    where = Where(None if persona_dir is None else Path(persona_dir), revision, dataset_test_split)
    sources = find_sources(data, where)
    if heldout is not None:
        sources = _with_heldout(sources, find_sources(heldout, replace(where, test_split=None)))
    unsplit = dataset_test_split is not None and not any(source.split == "heldout" for source in sources)
    if unsplit and dataset_test_split != TRL_DEFAULT:
        raise InputError(
            f"{_named(data)}: has no split {dataset_test_split!r}; give held-out pairs with --heldout DATA"
        )
    mapped = {"prompt": prompt_column, "chosen": chosen_column, "rejected": rejected_column}
    columns = Columns(concept_column, {part: name for part, name in mapped.items() if name is not None})
    read = ReadRows(columns)
    for source in sources:
        read.read(source)
    columns.refuse_missing(_named(data), read.columns_found)
    if read.bad and (on_bad_row == "fail" or not read.pairs):
        raise InputError(_bad_rows(read.bad, usable=len(read.pairs)))
    notes = [describe(read.texts), *(note for source in sources for note in source.notes), *read.notes]
    if unsplit:
        notes.append(f"no split {dataset_test_split!r} in {_named(data)}: held-out pairs are drawn")
    return PairSet(tuple(read.pairs), _duplicates(read.pairs), tuple(read.bad), tuple(notes))


@dataclass(frozen=True)
class Columns:
    """What columns are for, as the caller says: concept names that which groups pairs, mapped prompt and responses."""

    concept: str | None
    mapped: Mapping[str, str]

    def texts(self, row: Mapping[str, object]) -> Texts:
        missing = next((name for name in self.mapped.values() if name not in row), None)
        if missing is not None:
            raise RowError(f"column {missing!r} is missing")
        taken = {name for part, name in self.mapped.items() if part != name}
        renamed = {name: value for name, value in row.items() if name not in {*taken, *self.mapped}}
        renamed |= {part: row[name] for part, name in self.mapped.items()}
        return read_texts(renamed, {self.concept or ""}, decided="prompt" in self.mapped)

    def concept_of(self, row: Mapping[str, object], source: Source) -> str:
        name = self.concept
        if name is None:
            return source.concept or source.label
        if name not in row:
            raise RowError(f"concept column {name!r} is missing")
        value = row[name]
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"concept column {name!r} must hold a string or an integer, got {shorten(value)}")
        return check_string(f"concept column {name!r}", value)

    def refuse_missing(self, data: str, found: Mapping[str, None]) -> None:
        """Raises `InputError` where a column is named that no row has."""
        for kind, name in (("concept", self.concept), *self.mapped.items()):
            if name is not None and found and name not in found:
                listed = ", ".join(map(shorten, found))
                raise InputError(f"{data}: no row has the {kind} column {name!r}; columns found: {listed}")


@dataclass
class ReadRows:
    """Rows read so far: pairs and, row by row, their texts; the reasons of bad ones; every column met; notes on rows
    that are in no pair.
    """

    columns: Columns
    pairs: list[Pair] = field(default_factory=list)
    texts: list[Texts] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    columns_found: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def read(self, source: Source) -> None:
        """The rows of one source. Raises `InputError` when it has none, or none that make a pair."""
        line = 0
        apart: dict[str, tuple[Shape, list[Row]]] = {}
        for row in source.rows():
            line = row.line
            self.columns_found.update(dict.fromkeys(row.columns))
            found = recognise(row.columns)
            if found and found[1].gather:
                apart.setdefault(found[0], (found[1], []))[1].append(row)
            else:
                self._read(row, source)
        if line == 0:
            raise InputError(f"{source.name}: no rows")
        for shape, rows in apart.values():
            self._gather(shape, rows, source)

    def _gather(self, shape: Shape, rows: list[Row], source: Source) -> None:
        assert shape.gather
        gathered, alone = shape.gather(rows)
        if not gathered:
            raise InputError(
                f"{source.name}: of {len(rows)} rows of {shape.title} none makes a pair with another: no prompt has "
                "both labels"
            )
        if alone:
            self.notes.append(f"{source.name}: {alone} of {len(rows)} rows of {shape.title} have no partner: left out")
        for row in gathered:
            self._read(row, source)

    def _read(self, row: Row, source: Source) -> None:
        try:
            texts = self._texts(row, source)
            self.pairs.append(self._pair(row, texts, source))
            self.texts.append(texts)
        except RowError as error:
            self.bad.append(f"{source.name}, {source.unit} {row.line}: {error}")

    def _texts(self, row: Row, source: Source) -> Texts:
        if row.problem:
            raise RowError(row.problem)
        try:
            return self.columns.texts(row.columns)
        except UnknownShapeError as error:
            refuse_headless(row.columns, source)
            raise RowError(f"{error}; {advice(row.columns, source)}") from error
        except UnusedError as error:
            way = advice_on_unused(error, row.columns, source, self.columns.mapped)
            raise RowError(f"{error}; {way}") from error

    def _pair(self, row: Row, texts: Texts, source: Source) -> Pair:
        return Pair(
            id=f"{source.label}:{row.line}",
            concept=self.columns.concept_of(row.columns, source),
            prompt=texts.prompt,
            chosen=texts.chosen,
            rejected=texts.rejected,
            source=source.name,
            line=row.line,
            statement=texts.statement,
            split=source.split,
        )


def _with_heldout(train: Sequence[Source], heldout: Sequence[Source]) -> list[Source]:
    """Both as one list, each on its side. Raises `InputError` where one of them comes split already.

    Training and held-out pairs of one file each are of one concept, unless the held-out ones are of a persona.
    """
    for sources, which in ((train, "DATA"), (heldout, "--heldout")):
        split = next((source for source in sources if source.split), None)
        if split:
            raise InputError(
                f"{which} has training and held-out pairs of its own ({split.name}); name one of its files"
            )
    labels = {source.label for source in train}
    clash = any(source.label in labels for source in heldout)
    single = len(train) == len(heldout) == 1 and not heldout[0].concept
    return [
        *(replace(source, split="train") for source in train),
        *(
            replace(
                source,
                label=f"heldout/{source.label}" if clash else source.label,
                concept=(train[0].concept or train[0].label) if single else (source.concept or source.label),
                split="heldout",
            )
            for source in heldout
        ),
    ]


def _named(data: object) -> str:
    return str(data) if isinstance(data, (str, Path)) else "memory"


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
