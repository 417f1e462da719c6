"""What does an `--eval_data` argument mean? Pairs, whose margins are asked for, or texts, that should stay as they are.

`builtin` is a small neutral set of both, written for this project: `builtin/README.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from margincast.data import load_pairs
from margincast.data.formats import file_source
from margincast.data.load import Columns, ReadRows
from margincast.data.readers import Row, Source, shorten
from margincast.data.shapes import recognise
from margincast.data.sources import Where, find_sources
from margincast.data.texts import RowError, read_text
from margincast.errors import InputError
from margincast.evaldata.passages import SUFFIXES, read_passages, windows
from margincast.records import PairSet, Text
from margincast.splitting import prompt_key

BUILTIN = "builtin"
TEXT_COLUMNS = ("text", "messages", "conversations", "prompt")
SUBSET = "subset"  # RewardBench's column of what a pair is about
_NAMED = re.compile(r"(?P<name>[^=/\\]+)=(?P<data>.+)", re.DOTALL)
_NAME = re.compile(r"[\w.+-]+")
_STATEMENTS = ("frankness", "generosity", "love-of-cooking", "patience", "sense-of-humour")


@dataclass(frozen=True)
class EvalText:
    """`text`, a string or messages, from `source`, `line`;  prompt: whether it asks for an answer"""

    text: Text
    source: str
    line: int
    prompt: bool = False


@dataclass(frozen=True)
class EvalSet:
    """What one argument named: texts, pairs, or both."""

    name: str
    texts: tuple[EvalText, ...] = ()
    pairs: PairSet | None = None

    def overlap(self, train: PairSet) -> int:
        """How many of its pairs and prompts have the prompt of a training pair, and how many texts equal one."""
        known = {prompt_key(pair.prompt) for pair in train}
        return sum(key in known for key in self._keys())

    def _keys(self) -> Iterator[Hashable]:
        yield from (prompt_key(text.text) for text in self.texts)
        yield from (prompt_key(pair.prompt) for pair in self.pairs or ())


@dataclass(frozen=True, repr=False)
class EvalData:
    """Data that a run is measured on and not trained on.

    notes: how the data were understood, a line each
    """

    sets: tuple[EvalSet, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"EvalData({', '.join(each.name for each in self.sets)})"

    def overlaps(self, train: PairSet) -> list[str]:
        """A line for every set that training pairs `train` overlap."""
        counts = {each.name: each.overlap(train) for each in self.sets}
        return [
            f"eval data {name}: {count} items have the prompt of a training pair; what is measured there is training, "
            "not what else it changes"
            for name, count in counts.items()
            if count
        ]


def load_eval_data(
    given: str | Path | PairSet | Sequence[str | Path] | Mapping[str, str | Path | PairSet],
    *,
    persona_dir: str | Path | None = None,
    on_bad_row: Literal["fail", "skip"] = "fail",
) -> EvalData:
    """Read what a run is to be measured on beside its own pairs.

    given: arguments, each `DATA` or `NAME=DATA`; or by name, data or pairs. DATA is `builtin`, a text file (.txt, .md),
    anything that `load_pairs` reads, or rows with `text`, `messages` or `prompt` alone. Pairs with a column `subset`
    are grouped by it.

    Raises `InputError` for data that cannot be used, and for two sets of one name.
    """
    if isinstance(given, PairSet):
        given = {"pairs": given}
    if isinstance(given, (str, Path)):
        given = [given]
    named = given.items() if isinstance(given, Mapping) else (_named(str(each)) for each in given)
    sets: list[EvalSet] = []
    notes: list[str] = []
    for name, data in named:
        if any(each.name == name for each in sets):
            raise InputError(f"eval data: two sets are called {name}; name them, as in {name}-2=DATA")
        found, said = _read(name, data, persona_dir, on_bad_row)
        sets.append(found)
        notes += [f"eval data {name}: {line}" for line in said]
    return EvalData(tuple(sets), tuple(notes))


def _named(argument: str) -> tuple[str, str]:
    """Name and data of an argument. Raises `InputError` for a name that metrics could not have."""
    parts = _NAMED.fullmatch(argument)
    if parts is not None and not Path(argument).exists():
        if not _NAME.fullmatch(parts["name"]):
            raise InputError(f"--eval_data {argument}: a name is of letters, digits, '.', '+', '-' and '_'")
        return parts["name"], parts["data"]
    label = Path(argument).name.split(".")[0] or argument
    return re.sub(r"[^\w.+-]+", "-", label.removeprefix("persona:")), argument


def _read(
    name: str, data: str | Path | PairSet, persona_dir: str | Path | None, on_bad_row: Literal["fail", "skip"]
) -> tuple[EvalSet, list[str]]:
    if isinstance(data, PairSet):
        return EvalSet(name, pairs=data), [_count(data)]
    if str(data) == BUILTIN:
        return _builtin(name)
    path = Path(data)
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        found, note = read_passages(path)
        return EvalSet(name, tuple(EvalText(text, str(path), line) for line, text in found)), [note]
    where = Where(None if persona_dir is None else Path(persona_dir))
    sources = find_sources(data, where)
    first = next((row for source in sources for row in source.rows()), None)
    columns = {} if first is None else first.columns
    if recognise(columns) is None and (column := next((each for each in TEXT_COLUMNS if each in columns), None)):
        return _texts(name, sources, column, on_bad_row)
    grouped = SUBSET if SUBSET in columns else None
    pairs = load_pairs(data, persona_dir=persona_dir, concept_column=grouped, on_bad_row=on_bad_row)
    skipped = [f"left out {len(pairs.skipped)} unusable rows, the first: {pairs.skipped[0]}"] if pairs.skipped else []
    return EvalSet(name, pairs=pairs), [_count(pairs), *skipped]


def _count(pairs: PairSet) -> str:
    concepts = "1 concept" if len(pairs.concepts) == 1 else f"{len(pairs.concepts)} concepts"
    return f"{len(pairs)} pairs in {concepts}"


def _builtin(name: str) -> tuple[EvalSet, list[str]]:
    folder = resources.files("margincast.evaldata").joinpath("builtin")
    rows = [json.loads(line) for line in folder.joinpath("prompts.jsonl").read_text("utf-8").splitlines()]
    texts = tuple(
        EvalText(row["prompt"], "builtin/prompts.jsonl", line, prompt=True) for line, row in enumerate(rows, start=1)
    )
    read = ReadRows(Columns(None, {}))
    for trait in _STATEMENTS:
        read.read(file_source(folder.joinpath(f"{trait}.jsonl"), f"builtin/{trait}.jsonl", trait))
    pairs = PairSet(tuple(read.pairs))
    return EvalSet(name, texts, pairs), [f"{len(texts)} prompts, {_count(pairs)}"]


def _texts(
    name: str, sources: Sequence[Source], column: str, on_bad_row: Literal["fail", "skip"]
) -> tuple[EvalSet, list[str]]:
    found: list[EvalText] = []
    bad: list[str] = []
    rows = 0
    for source in sources:
        for row in source.rows():
            rows += 1
            try:
                found += _of_row(row, source, column)
            except RowError as error:
                bad.append(f"{source.name}, {source.unit} {row.line}: {error}")
    if bad and on_bad_row == "fail":
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise InputError(f"{bad[0]}{more}; correct the data or leave such rows out with --on-bad-row skip")
    if not found:
        raise InputError(f"{sources[0].name}: no text in it")
    prompts = sum(each.prompt for each in found)
    kind = f"{prompts} prompts" if prompts == len(found) else f"{len(found)} texts"
    said = [f"{kind} of {rows} rows, column {column!r}"]
    return EvalSet(name, tuple(found)), said + ([f"left out {len(bad)} rows, the first: {bad[0]}"] if bad else [])


def _of_row(row: Row, source: Source, column: str) -> list[EvalText]:
    """The texts of a row: one, or the windows of a long one. Raises `RowError`."""
    if row.problem:
        raise RowError(row.problem)
    if column not in row.columns:
        raise RowError(f"column {column!r} is missing")
    text = read_text(column, row.columns[column], [])
    if isinstance(text, str):
        if not text.strip():
            raise RowError(f"{column} is empty")
        prompt = column == "prompt"
        pieces = [text] if prompt else list(windows(text.strip()))
        return [EvalText(piece, source.name, row.line, prompt) for piece in pieces]
    if not text or not any(message["content"].strip() for message in text):
        raise RowError(f"{column} has no text: {shorten(row.columns[column])}")
    return [EvalText(text, source.name, row.line, prompt=text[-1]["role"] != "assistant")]
