"""Which files does `persona:NAME[,NAME…]` mean, and where are they?

The files are Anthropic's persona evaluations, one concept each. `k1`, `k2`, `k4`, `k8` and `k16` stand for the lists
of the paper's experiments, `all` for every file. A folder, where one is given, decides which names there are;
without one the files come from the Hub.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from margincast.data.formats import file_source
from margincast.data.readers import Source, first_line, shorten
from margincast.errors import InputError, StatedFailure
from margincast.hub import cache_where_unreachable

_REPOSITORY = "Anthropic/model-written-evals"
_FOLDER_HINT = "give a folder that holds the persona files with --persona-dir or $MARGINCAST_PERSONA_DIR"


def paper_lists() -> dict[str, list[str]]:
    """The personas of the paper's experiments with K = 1, 2, 4, 8 and 16 concepts, by `k1` … `k16`."""
    text = resources.files("margincast.data").joinpath("paper_personas.json").read_text(encoding="utf-8")
    lists: dict[str, list[str]] = json.loads(text)
    return lists


def persona_sources(names: str, persona_dir: Path | None, revision: str | None) -> list[Source]:
    """One source for each persona in the comma-separated `names`; a persona named twice is read once.

    Raises `InputError` for a name without a file, `StatedFailure` when the Hub is needed and cannot be reached.
    """
    requested = [name.strip() for name in names.split(",")]
    if not all(requested):
        raise InputError(f"persona:{names} holds an empty name; write persona:NAME[,NAME…]")
    files = _on_hub(requested, revision) if persona_dir is None else _in_folder(requested, persona_dir)
    return [replace(file_source(file, f"{name}.jsonl", name), concept=name) for name, file in files.items()]


def _expand(requested: Sequence[str], every: Sequence[str]) -> list[str]:
    lists = paper_lists() | {"all": list(every)}
    return list(dict.fromkeys(name for entry in requested for name in lists.get(entry, [entry])))


def _in_folder(requested: Sequence[str], folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"persona folder {folder}: no such folder")
    files = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise InputError(f"persona folder {folder}: holds no .jsonl files")
    names = _expand(requested, list(files))
    candidates = [*files, *paper_lists(), "all"]
    unknown = [
        f"{shorten(name)} (closest: {difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)[0]!r})"
        for name in names
        if name not in files
    ]
    if unknown:
        raise InputError(f"persona folder {folder}: no file for {', '.join(unknown)}")
    return {name: files[name] for name in names}


def _on_hub(requested: Sequence[str], revision: str | None) -> dict[str, Path]:
    with cache_where_unreachable() as alone:
        names = _expand(requested, _names_on_hub(revision, alone) if "all" in requested else ())
        for name in names:
            if not re.fullmatch(r"[\w.-]+", name):
                raise InputError(f"{shorten(name)} is not the name of a persona")
        return {name: _download(name, revision, alone) for name in names}


def _download(name: str, revision: str | None, alone: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.hf_hub_download(
                _REPOSITORY, f"persona/{name}.jsonl", repo_type="dataset", revision=revision
            )
        )
    except Exception as error:  # the HTTP library's own errors come through, and which library differs by release
        # A file that is "not found locally" was looked for without a connection: it may well exist.
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise InputError(f"no persona file {shorten(name)} in {_REPOSITORY} on the Hub") from error
        reason = f"persona file {shorten(name)} could not be fetched from {_REPOSITORY}: {first_line(error)}{alone}"
        raise StatedFailure(f"{reason}; {_FOLDER_HINT}") from error


def _names_on_hub(revision: str | None, alone: str) -> list[str]:
    import huggingface_hub

    try:
        files = huggingface_hub.HfApi().list_repo_files(_REPOSITORY, repo_type="dataset", revision=revision)
    except Exception as error:  # as in _download
        reason = f"the persona files of {_REPOSITORY} could not be listed: {first_line(error)}{alone}"
        raise StatedFailure(f"{reason}; {_FOLDER_HINT}") from error
    paths = [Path(file) for file in files]
    return sorted(path.stem for path in paths if path.parent == Path("persona") and path.suffix == ".jsonl")
