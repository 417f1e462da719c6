"""Files and folders that are here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from margincast.data.formats import READERS, file_source, suffix_of
from margincast.data.formats.columnar import is_saved, saved_source
from margincast.data.formats.json_files import read_json
from margincast.data.readers import Source
from margincast.data.shapes import recognise
from margincast.data.sources import SOURCES, SourceKind, Where
from margincast.data.splits import listed, note_of_drawn, parts_of
from margincast.errors import InputError


def _exists(data: str) -> bool:
    try:
        return bool(data.strip()) and (Path(data).exists() or Path(data).is_symlink())
    except (OSError, ValueError):  # longer than any file name; a name with a zero byte
        return False


def _local(path: Path, where: Where) -> list[Source]:
    if not path.is_dir():
        return [file_source(path, str(path), path.name.removesuffix(suffix_of(path.name)))]
    whole = path.resolve().name
    if is_saved(path):
        return [saved_source(path, str(path), whole)]
    found, beside = _found(path)
    by_label: dict[str, Path] = {}
    for file in found:
        inside = file.relative_to(path).as_posix()
        label = inside if file.is_dir() else inside.removesuffix(suffix_of(file.name))
        if label in by_label:
            twins = f"{by_label[label].name} and {file.name}"
            raise InputError(f"{path}: {twins} differ only in their extension; give the one to be read")
        by_label[label] = file
    if not by_label:
        left = f"; it holds {listed(beside)}" if beside else ""
        raise InputError(f"{path}: no {', '.join(READERS)} files in this folder{left}")
    return _folder(path, whole, by_label, beside, where)


def _folder(path: Path, whole: str, by_label: dict[str, Path], beside: list[str], where: Where) -> list[Source]:
    parts = parts_of(list(by_label), whole, where.test_split)
    sources = []
    for label, file in by_label.items():
        name = file.as_posix()
        source = saved_source(file, name, label) if file.is_dir() else file_source(file, name, label)
        if parts[label].left_out:
            beside.append(f"{file.relative_to(path).as_posix()} ({parts[label].left_out})")
        else:
            sources.append(replace(source, concept=parts[label].concept, split=parts[label].split))
    notes = [f"not read in {path}: {listed(beside)}"] if beside else []
    heldout = [source.name for source in sources if source.split == "heldout"]
    if heldout:
        notes.insert(0, f"held out as the files' names say: {listed(heldout)}")
        notes += note_of_drawn({file.as_posix(): parts[label] for label, file in by_label.items()})
    return [replace(sources[0], notes=tuple(notes)), *sources[1:]]


def _found(path: Path) -> tuple[list[Path], list[str]]:
    """What in the folder holds data, in order, and what does not, with the reason."""
    data: list[Path] = []
    beside: list[str] = []
    for file in sorted(_walk(path)):
        inside = file.relative_to(path).as_posix()
        if any(part.startswith(".") for part in file.relative_to(path).parts):  # caches and editors' leftovers
            beside.append(f"{inside} (hidden)")
        elif file.is_dir() and file.is_symlink():
            beside.append(f"{inside} (a link to a folder; give that folder)")
        elif file.is_dir():
            data.append(file)
        elif not suffix_of(file.name):
            beside.append(f"{inside} ({'a link to nothing' if not file.exists() else 'no data file by its extension'})")
        elif suffix_of(file.name).lower() == ".json" and _describes(file):
            beside.append(f"{inside} (it holds no rows)")
        else:
            data.append(file)
    return data, beside


def _walk(path: Path) -> Iterator[Path]:
    """Every file below the folder, every folder that `datasets` saved, and hidden folders and links as they are."""
    for folder, inner, files in os.walk(path):
        here = Path(folder)
        yield from (here / name for name in files if (here / name) != path / "dataset_dict.json")
        ends = [name for name in inner if name.startswith(".") or (here / name).is_symlink() or is_saved(here / name)]
        yield from (here / name for name in ends)
        inner[:] = [name for name in inner if name not in ends]


def _describes(file: Path) -> bool:
    """Whether a .json file is an object that is no row, or a list of no objects: what is said about data beside it."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(64).lstrip()
    if head[:1] == b"[":
        return head[1:].lstrip()[:1] not in (b"{", b"]", b"")
    try:
        rows = list(read_json(file, file.name))
    except InputError:
        return False  # it is read as data, and what is wrong with it said then
    return len(rows) == 1 and not rows[0].problem and recognise(rows[0].columns) is None


SOURCES.register("files")(SourceKind(_exists, lambda data, where: _local(Path(data), where), rank=8))
