"""Which files or Hub data sets does a DATA argument mean? One module a kind of source.

traits                    the data set packaged with margincast
persona:NAME[,NAME…]      persona files
path                      a .jsonl, .parquet or .csv file, or a folder of them
owner/name[:split]        a data set on the Hugging Face Hub

A kind of another package is an entry point of the group `margincast.sources`: a `SourceKind`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from margincast.data.readers import READERS, Source, shorten
from margincast.errors import InputError
from margincast.registry import Registry


@dataclass(frozen=True)
class Where:
    """persona_dir: folder of persona files, None for the Hub;  revision: of what is read from the Hub"""

    persona_dir: Path | None = None
    revision: str | None = None


@dataclass(frozen=True)
class SourceKind:
    """claims: whether a DATA argument is of this kind;  find: its sources, in reading order, their labels distinct
    rank: of two kinds that claim it, the one with the lower rank is meant
    """

    claims: Callable[[str], bool]
    find: Callable[[str, Where], list[Source]]
    rank: int = 5


SOURCES: Registry[SourceKind] = Registry("data source", "margincast.data.sources", "margincast.sources")
"""The kinds of source by name. `SOURCES.register(name)` enters a `SourceKind`."""


def find_sources(data: str, persona_dir: Path | None, revision: str | None) -> list[Source]:
    """The sources `data` means.

    `traits` and `persona:…` are taken as such; then what exists here is read here (`./traits` is a folder of that
    name); what is left may be on the Hub. Raises `InputError` when it is none of these.
    """
    for kind in sorted(SOURCES.all().values(), key=lambda kind: kind.rank):
        if kind.claims(data):
            return kind.find(data, Where(persona_dir, revision))
    raise InputError(
        f"{shorten(data)}: no such file or folder; data are 'traits', 'persona:NAME[,NAME…]', "
        f"a {', '.join(READERS)} file or a folder of them, or 'owner/name[:split]' on the Hub"
    )
