"""The data set packaged with margincast."""

from __future__ import annotations

from importlib import resources

from margincast.data.formats import file_source
from margincast.data.readers import Source
from margincast.data.sources import SOURCES, SourceKind


def _traits() -> list[Source]:
    folder = resources.files("margincast.data").joinpath("traits")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".jsonl")), key=lambda file: file.name)
    return [file_source(file, f"traits/{file.name}", file.name.removesuffix(".jsonl")) for file in files]


SOURCES.register("traits")(SourceKind(lambda data: data == "traits", lambda data, where: _traits(), rank=0))
