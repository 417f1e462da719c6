"""How are chosen pairs written so that any trainer reads them? As rows of the file that they came from, untouched.

That goes where all pairs are rows of one file of JSON lines, CSV, TSV, a JSON array or Parquet. Pairs of several files,
of compressed ones, of the Hub, and rows that became pairs in twos are written as JSON lines of prompt, chosen, rejected
and concept.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from margincast.diagnose.export import write_pairs
from margincast.records import PairSet
from margincast.runs.store import atomic_path

Record = tuple[int, bytes]  # where it stands, as `Pair.line` counts, and its bytes


def write_chosen(chosen: PairSet, all_pairs: PairSet, folder: Path, name: str, *, whole: bool) -> tuple[Path, bool]:
    """Write `chosen` into `folder` as `name` with the ending of their file; where, and whether rows are as they came.

    all_pairs: that came with them, which account for all rows of the file where it can be written as it is
    whole: nothing was left out, so that the file itself is the answer, byte for byte
    """
    source = _one_file({pair.source for pair in chosen})
    if source is not None:
        path = folder / f"{name}{source.suffix.lower()}"
        known = {pair.line for pair in all_pairs if pair.source == str(source)}
        lines = {pair.line for pair in chosen}
        if whole:
            with atomic_path(path) as temporary:
                shutil.copyfile(source, temporary)
            return path, True
        if WRITERS[source.suffix.lower()](source, path, lines, known):
            return path, True
    path = folder / f"{name}.jsonl"
    write_pairs(path, chosen.pairs)
    return path, False


def _one_file(sources: set[str]) -> Path | None:
    path = Path(next(iter(sources))) if len(sources) == 1 else None
    return path if path is not None and path.is_file() and path.suffix.lower() in WRITERS else None


def _by_records(
    read: Callable[[bytes], Iterator[Record] | None],
) -> Callable[[Path, Path, set[int], set[int]], bool]:
    """A writer of the records at some lines; not where the file has rows that are no pair of `known`, or another
    encoding than ASCII's own bytes."""

    def write(source: Path, path: Path, lines: set[int], known: set[int]) -> bool:
        content = source.read_bytes()
        records = None if b"\0" in content else read(content)
        if records is None:
            return False
        listed = list(records)
        if {line for line, _ in listed if line} != known:
            return False
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for line, record in listed:
                if not line or line in lines:
                    # The last line of a file may have no end, and is not the last any more.
                    file.write(record if record.endswith(b"\n") else record + b"\n")
        return True

    return write


def _json_lines(content: bytes) -> Iterator[Record]:
    lines = content.split(b"\n")
    return ((number, line + b"\n") for number, line in enumerate(lines, start=1) if line.strip())


def _delimited(delimiter: str) -> Callable[[bytes], Iterator[Record]]:
    """Records of a table, whose cells may hold line ends; the header has line 0."""

    def read(content: bytes) -> Iterator[Record]:
        taken: list[str] = []

        def lines() -> Iterator[str]:
            for line in io.StringIO(content.decode("utf-8", errors="surrogateescape"), newline=""):
                taken.append(line)
                yield line

        begin = 1
        for number, cells in enumerate(csv.reader(lines(), delimiter=delimiter, strict=True)):
            record, length = "".join(taken).encode("utf-8", errors="surrogateescape"), len(taken)
            taken.clear()
            if cells:
                yield (begin if number else 0), record
            begin += length

    return read


def _json_array(source: Path, path: Path, lines: set[int], known: set[int]) -> bool:
    text = source.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return False
    rows = json.loads(text)
    if set(range(1, len(rows) + 1)) != known:
        return False
    kept = [row for number, row in enumerate(rows, start=1) if number in lines]
    indent = 2 if "\n" in text.strip() else None
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def _parquet(source: Path, path: Path, lines: set[int], known: set[int]) -> bool:
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    table = parquet.read_table(source)
    if set(range(1, table.num_rows + 1)) != known:
        return False
    with atomic_path(path) as temporary:
        parquet.write_table(table.take([line - 1 for line in sorted(lines)]), temporary)
    return True


WRITERS: dict[str, Callable[[Path, Path, set[int], set[int]], bool]] = {
    ".jsonl": _by_records(_json_lines),
    ".csv": _by_records(_delimited(",")),
    ".tsv": _by_records(_delimited("\t")),
    ".json": _json_array,
    ".parquet": _parquet,
}
