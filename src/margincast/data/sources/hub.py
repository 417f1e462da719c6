"""Data sets on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from margincast.data.hub import hub_source
from margincast.data.readers import READERS
from margincast.data.sources import SOURCES, SourceKind

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:.+)?")


def _claims(data: str) -> bool:
    return bool(_HUB_NAME.fullmatch(data)) and Path(data).suffix.lower() not in READERS


SOURCES.register("hub")(SourceKind(_claims, lambda data, where: [hub_source(data, where.revision)], rank=9))
