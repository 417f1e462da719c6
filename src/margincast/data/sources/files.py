"""Files and folders that are here."""

from __future__ import annotations

from pathlib import Path

from margincast.data.readers import READERS, Source, file_source
from margincast.data.sources import SOURCES, SourceKind
from margincast.errors import InputError


def _exists(data: str) -> bool:
    try:
        return bool(data.strip()) and Path(data).exists()
    except OSError:  # longer than any file name
        return False


def _local(path: Path) -> list[Source]:
    if not path.is_dir():
        return [file_source(path, str(path), path.stem)]
    by_label: dict[str, Path] = {}
    for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file()):
        inside = file.relative_to(path)
        if any(part.startswith(".") for part in inside.parts):  # caches and editors' leftovers
            continue
        label = inside.with_suffix("").as_posix()
        if label in by_label:
            twins = f"{by_label[label].name} and {file.name}"
            raise InputError(f"{path}: {twins} differ only in their extension; give the one to be read")
        by_label[label] = file
    if not by_label:
        raise InputError(f"{path}: no {', '.join(READERS)} files in this folder")
    return [file_source(file, file.as_posix(), label) for label, file in by_label.items()]


SOURCES.register("files")(SourceKind(_exists, lambda data, where: _local(Path(data)), rank=8))
