"""Which rows does a file hold? By its extension: JSON, CSV, TSV, Parquet and Arrow, plain or compressed.

A reader opens one file and yields its rows as they stand, columns by name, without asking what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.data.formats.columnar import read_arrow, read_parquet
from margincast.data.formats.delimited import HEADER_HINT, read_csv, read_tsv
from margincast.data.formats.json_files import read_json, read_jsonl
from margincast.data.readers import Row, Source
from margincast.data.streams import COMPRESSIONS
from margincast.errors import InputError

if TYPE_CHECKING:
    from importlib.abc import Traversable  # where it lies depends on the version of Python

READERS: dict[str, Callable[[Traversable, str], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
BY_LINE = (".jsonl", ".csv", ".tsv")


def suffix_of(name: str) -> str:
    """The extension of a file that has a reader, as it is written (`.jsonl`, `.csv.gz`), or an empty string."""
    plain = next((name[: -len(each)] for each in COMPRESSIONS if name.lower().endswith(each)), name)
    known = next((each for each in READERS if plain.lower().endswith(each)), "")
    return name[len(plain) - len(known) :] if known else ""


def file_source(file: Traversable, name: str, label: str) -> Source:
    """The source that reads `file` by its extension.

    Raises `InputError` for an extension without a reader, a name that is no text, and what is no file to read.
    """
    suffix = suffix_of(file.name).lower()
    if not suffix:
        unknown = Path(file.name).suffix.lower()
        kinds = f"{', '.join(READERS)}, each also {', '.join(COMPRESSIONS)}"
        raise InputError(f"{name}: unknown extension {unknown!r}; data files are {kinds}")
    if not name.isprintable() and name != name.encode(errors="replace").decode():
        raise InputError(f"{name.encode(errors='backslashreplace').decode()}: the file's name is not UTF-8; rename it")
    if isinstance(file, Path) and not file.is_file():
        what = "a link to nothing" if not file.exists() else "no regular file (a pipe, a device or a folder)"
        raise InputError(f"{name}: {what}; give a file to read, or remove it")
    kind = next(each for each in READERS if suffix.startswith(each) and suffix[len(each) :] in ("", *COMPRESSIONS))
    return Source(
        name,
        label,
        "line" if kind in BY_LINE else "row",
        lambda: READERS[kind](file, name),
        hint=HEADER_HINT if kind in (".csv", ".tsv") else "",
    )
