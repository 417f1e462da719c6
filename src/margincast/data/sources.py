"""Which files or Hub data sets does a DATA argument mean?

traits                    the data set packaged with margincast
persona:NAME[,NAME…]      persona files, see `persona`
path                      a .jsonl, .parquet or .csv file, or a folder of them
owner/name[:split]        a data set on the Hugging Face Hub
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from margincast.data.hub import hub_source
from margincast.data.persona import persona_sources
from margincast.data.readers import READERS, Source, file_source, shorten
from margincast.errors import InputError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:.+)?")


def find_sources(data: str, persona_dir: Path | None, revision: str | None) -> list[Source]:
    """The sources `data` means, in reading order, their labels distinct.

    `traits` and `persona:…` are taken as such; then what exists here is read here (`./traits` is a folder of that
    name); what is left may be on the Hub. Raises `InputError` when it is none of these.
    """
    if data == "traits":
        return _traits()
    if data.startswith("persona:"):
        return persona_sources(data.removeprefix("persona:"), persona_dir, revision)
    if _exists(data):
        return _local(Path(data))
    if _HUB_NAME.fullmatch(data) and Path(data).suffix.lower() not in READERS:
        return [hub_source(data, revision)]
    raise InputError(
        f"{shorten(data)}: no such file or folder; data are 'traits', 'persona:NAME[,NAME…]', "
        f"a {', '.join(READERS)} file or a folder of them, or 'owner/name[:split]' on the Hub"
    )


def _exists(data: str) -> bool:
    try:
        return bool(data.strip()) and Path(data).exists()
    except OSError:  # longer than any file name
        return False


def _traits() -> list[Source]:
    folder = resources.files("margincast.data").joinpath("traits")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".jsonl")), key=lambda file: file.name)
    return [file_source(file, f"traits/{file.name}", file.name.removesuffix(".jsonl")) for file in files]


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
