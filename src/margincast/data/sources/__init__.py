"""Which files, tables or Hub data sets does a DATA argument mean? One module a kind of source.

traits                    the data set packaged with margincast
persona:NAME[,NAME…]      persona files
path                      a data file, a folder of `save_to_disk`, or a folder of either
owner/name[:split]        a data set on the Hugging Face Hub
DATA + DATA               one after the other
a table in memory         in Python: a Dataset or DatasetDict of `datasets`, a DataFrame of pandas, a list of dicts

A kind of another package is an entry point of the group `margincast.sources`: a `SourceKind`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from margincast.data.formats import READERS
from margincast.data.readers import Source, shorten
from margincast.data.streams import COMPRESSIONS
from margincast.errors import InputError
from margincast.registry import Registry


@dataclass(frozen=True)
class Where:
    """persona_dir: folder of persona files, None for the Hub;  revision: of what is read from the Hub
    test_split: the part of the data that is held out, by its name
    """

    persona_dir: Path | None = None
    revision: str | None = None
    test_split: str | None = None


@dataclass(frozen=True)
class SourceKind:
    """claims: whether a DATA argument is of this kind: a string, unless it is a table in memory
    find: its sources, in reading order, their labels distinct
    rank: of two kinds that claim it, the one with the lower rank is meant
    """

    claims: Callable[[Any], bool]
    find: Callable[[Any, Where], list[Source]]
    rank: int = 5


SOURCES: Registry[SourceKind] = Registry("data source", "margincast.data.sources", "margincast.sources")
"""The kinds of source by name. `SOURCES.register(name)` enters a `SourceKind`."""


def find_sources(data: object, where: Where) -> list[Source]:
    """The sources `data` means.

    A table in memory, `traits` and `persona:…` are taken as such; then what exists here is read here (`./traits` is a
    folder of that name); what is left may be on the Hub. Raises `InputError` when it is none of these.
    """
    named = str(data) if isinstance(data, Path) else data
    for kind in sorted(SOURCES.all().values(), key=lambda kind: kind.rank):
        if kind.claims(named):
            return kind.find(named, where)
    raise InputError(
        f"{shorten(named)}: no such file or folder; data are 'traits', 'persona:NAME[,NAME…]', "
        f"a {', '.join(READERS)} file (also {', '.join(COMPRESSIONS)}) or a folder of them, "
        "or 'owner/name[:split]' on the Hub; several are joined by ' + '"
    )
