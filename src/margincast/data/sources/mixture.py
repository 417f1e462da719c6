"""Several data one after the other, as TRL's `datasets:` concatenates them: `first.jsonl + owner/name:split`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from margincast.data.readers import Source
from margincast.data.sources import SOURCES, SourceKind, Where, find_sources
from margincast.errors import InputError

BETWEEN = " + "


def _claims(data: str | Path) -> bool:
    return BETWEEN in str(data) and not Path(data).exists()


def _each(data: str | Path, where: Where) -> list[Source]:
    """Of every part its sources. Which of their pairs are held out is not said by the mixture: as in TRL, whose mixture
    has training pairs alone, no other split of a part is read."""
    parts = {
        part: find_sources(part, replace(where, test_split=None)) for part in map(str.strip, str(data).split(BETWEEN))
    }
    counts = Counter(source.label for sources in parts.values() for source in sources)
    for part, sources in parts.items():
        if len(sources) == 1 and counts[sources[0].label] > 1:  # a/train.jsonl + b/train.jsonl
            parts[part] = [replace(sources[0], label=part)]
    found = [source for sources in parts.values() for source in sources]
    twins = [label for label, count in Counter(source.label for source in found).items() if count > 1]
    if twins or len(parts) < str(data).count(BETWEEN) + 1:
        raise InputError(f"{data}: two of these are the same, or have files of the same name, which ids begin with")
    return found


SOURCES.register("mixture")(SourceKind(_claims, _each, rank=0))
