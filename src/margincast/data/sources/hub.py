"""Data sets on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import replace

from margincast.data.formats import suffix_of
from margincast.data.hub import hub_source
from margincast.data.readers import Source
from margincast.data.sources import SOURCES, SourceKind, Where

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:.+)?")


def _claims(data: str) -> bool:
    return bool(_HUB_NAME.fullmatch(data)) and not suffix_of(data)


def _splits(data: str, where: Where) -> list[Source]:
    train = hub_source(data, where.revision)
    if where.test_split is None:
        return [train]
    heldout = hub_source(f"{train.label}:{where.test_split}", where.revision)
    return [
        replace(train, split="train"),
        replace(heldout, label=f"{train.label}:{where.test_split}", concept=train.label, split="heldout"),
    ]


SOURCES.register("hub")(SourceKind(_claims, _splits, rank=9))
