"""What is in the cache, how large is it, and what of it goes first? Features by their keys, and models made on use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from margincast.features.cache import MANIFEST
from margincast.models.gguf import MANIFEST as MODEL_MANIFEST
from margincast.results import Json


@dataclass(frozen=True)
class Entry:
    """name: of its folder;  kind: features or model;  about: what it is of, in words
    size: bytes;  used: when it was last, in seconds since 1970;  lock: held by who makes it
    """

    name: str
    kind: str
    about: str
    folder: Path
    size: int
    used: float
    lock: Path

    def remove(self) -> bool:
        """Take it away, unless another process is making it; whether it is gone."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            return False
        try:
            shutil.rmtree(self.folder)
        finally:
            lock.release()
        self.lock.unlink(missing_ok=True)
        return True


def entries(root: Path) -> list[Entry]:
    """All of the cache at `root`, the least recently used first."""
    return sorted((*_features(root), *_models(root)), key=lambda entry: (entry.used, entry.name))


def shrink(root: Path, limit: float, since: float) -> list[Entry]:
    """Remove the least recently used entries until all of them together have at most `limit` bytes.

    since: entries used later than this, in seconds since 1970, stay: the run that asks is using them

    Returns what went.
    """
    there = entries(root)
    size = sum(entry.size for entry in there)
    gone = []
    for entry in there:
        if size <= limit or entry.used >= since:
            break
        if entry.remove():
            gone.append(entry)
            size -= entry.size
    return gone


def _features(root: Path) -> Iterator[Entry]:
    for folder in _folders(root / "features"):
        said = _said(folder / MANIFEST)
        about, key = said.get("about"), said.get("key")
        words = "an extraction that was not finished"
        if said:
            kind = key.get("kind", "") if isinstance(key, dict) else ""
            of = f"{about.get('pairs')} pairs, {about.get('model')}" if isinstance(about, dict) and about else "unnamed"
            words = f"{of} ({kind})"
        yield _entry(folder, "features", words, root / "locks" / folder.name, folder / MANIFEST)


def _models(root: Path) -> Iterator[Entry]:
    for folder in _folders(root / "models"):
        source = _said(folder / MODEL_MANIFEST).get("source")
        yield _entry(folder, "model", str(source or "made by margincast"), folder.with_suffix(".lock"), folder)


def _folders(parent: Path) -> list[Path]:
    return (
        [each for each in parent.iterdir() if each.is_dir() and not each.name.startswith(".")]
        if parent.is_dir()
        else []
    )


def _entry(folder: Path, kind: str, about: str, lock: Path, touched: Path) -> Entry:
    """touched: what is given the time of every use; while an extraction runs it is not there, and its folder tells"""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    used = (touched if touched.exists() else folder).stat().st_mtime
    return Entry(folder.name, kind, about, folder, size, used, lock)


def _said(manifest: Path) -> Json:
    """What a manifest says; nothing where there is none that can be read."""
    try:
        said = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
