"""How are features kept, and when may they be used again? Only when everything that made them is the same.

What made them is the weights, the configuration and the token ids as they were when the model read them: not the names
of a model, a data set or a chat template, under which something else may lie today.

A folder per key holds `features.safetensors` and `manifest.json` (the key's parts, the file's SHA-256, and in words
what it is of). While an extraction runs, finished rows lie there as `part-*.safetensors`, each with its hash, so a
killed run continues where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from margincast.passes.tokenize import Encoded
from margincast.runs.store import file_sha256, key_of, link, write_json, write_tensors, write_text

FEATURES = "features.safetensors"
MANIFEST = "manifest.json"
LAYOUT = 2  # of the tensors in the file; a change makes old caches unused


@dataclass(frozen=True)
class CacheKey:
    """Everything that decides the numbers of an extraction.

    weights: hash of the weights in memory, an adapter's included;  config: hash of the model's configuration
    kernel: of attention;  tokens: hash of the token ids, pair after pair
    """

    weights: str
    config: str
    dtype: str
    kernel: str
    tokens: str
    packed: bool
    kind: str = "pairs"
    layout: int = LAYOUT

    @property
    def name(self) -> str:
        return key_of(asdict(self))[:32]


class FeatureCache:
    """The folder of one key: finished features, or the finished part of them."""

    def __init__(self, root: Path, key: CacheKey) -> None:
        self.root = root
        self.folder = root / "features" / key.name
        self.lock = root / "locks" / key.name
        self.key = key

    def of_kind(self, kind: str) -> FeatureCache:
        """The cache of another kind of lines of the same pairs."""
        return FeatureCache(self.root, replace(self.key, kind=kind))

    def claimed(self) -> BaseFileLock:
        """A lock that one run has at a time: two at once would take each other's parts away."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.lock)

    def load(self) -> dict[str, Tensor] | None:
        """The cached tensors, or None when there are none or they are not what the manifest says."""
        manifest, path = self.folder / MANIFEST, self.folder / FEATURES
        if not manifest.is_file() or not path.is_file():
            return None
        try:
            recorded = json.loads(manifest.read_text())
            if recorded["key"] != asdict(self.key) or recorded["sha256"] != file_sha256(path):
                return None
            tensors = load_file(path)
        except (ValueError, KeyError, TypeError, SafetensorError):
            return None
        with suppress(OSError):  # a cache that may only be read
            manifest.touch()  # used again: the least recently used go first
        return tensors

    def save(self, tensors: dict[str, Tensor], about: Mapping[str, str | int] | None = None) -> None:
        """Keep `tensors`; `about` says in the manifest, for a person, what they are of."""
        # The manifest is taken away first and written last: a file without its manifest is never used.
        (self.folder / MANIFEST).unlink(missing_ok=True)
        write_tensors(self.folder / FEATURES, tensors)
        digest = file_sha256(self.folder / FEATURES)
        manifest = {"key": asdict(self.key), "sha256": digest, "about": dict(about or {})}
        write_json(self.folder / MANIFEST, manifest)
        for part in self.folder.glob("part-*"):
            part.unlink(missing_ok=True)

    def copy_to(self, folder: Path) -> None:
        """Put the features and their manifest into `folder`, as links where the file system can."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in ((FEATURES, FEATURES), (MANIFEST, "features.manifest.json")):
            link(self.folder / name, folder / target)

    def save_part(self, rows: Tensor, tensors: dict[str, Tensor]) -> None:
        """Keep finished `rows` of every tensor: indices over training then held-out pairs, or over their positions."""
        path = self.folder / f"part-{int(rows.min()):09d}-{len(rows)}.safetensors"
        write_tensors(path, {"rows": rows, **tensors})
        write_text(path.with_suffix(".sha256"), file_sha256(path))

    def load_parts(self) -> list[dict[str, Tensor]]:
        """Finished parts of an interrupted extraction; a damaged part is dropped and computed again."""
        parts = []
        for path in sorted(self.folder.glob("part-*.safetensors")):
            recorded = path.with_suffix(".sha256")
            if recorded.is_file() and recorded.read_bytes() == file_sha256(path).encode():
                parts.append(load_file(path))
            else:
                path.unlink()
        return parts


def tokens_key(rows: Sequence[Encoded]) -> str:
    """SHA-256 of the token ids of `rows`, in their order, whatever tokenizer, chat template or date made them."""
    return key_of([[row.prompt, row.chosen, row.rejected] for row in rows])


def fill(parts: list[dict[str, Tensor]], total: int) -> dict[str, Tensor]:
    """One tensor per name with `total` rows, from parts that each carry their `rows`."""
    whole: dict[str, Tensor] = {}
    for part in parts:
        for name, values in part.items():
            if name == "rows":
                continue
            if name not in whole:
                whole[name] = torch.zeros(total, *values.shape[1:], dtype=values.dtype)
            whole[name][part["rows"]] = values
    return whole
