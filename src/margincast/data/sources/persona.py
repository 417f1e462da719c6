"""Anthropic Persona files by name."""

from __future__ import annotations

from margincast.data.persona import persona_sources
from margincast.data.readers import Source
from margincast.data.sources import SOURCES, SourceKind, Where

PREFIX = "persona:"


def _personas(data: str, where: Where) -> list[Source]:
    return persona_sources(data.removeprefix(PREFIX), where.persona_dir, where.revision)


SOURCES.register("persona")(SourceKind(lambda data: data.startswith(PREFIX), _personas, rank=1))
