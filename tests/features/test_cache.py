"""Cached tensors come back only under the key that made them, and only when the file is what was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from margincast.features.cache import FEATURES, MANIFEST, CacheKey, FeatureCache, fill

KEY = CacheKey("weights", "config", "float32", "sdpa", "tokens", True)
OTHER: dict[str, Any] = {
    "weights": "others",
    "config": "another",
    "dtype": "bfloat16",
    "kernel": "eager",
    "tokens": "others",
    "packed": False,
    "kind": "positions",
    "layout": 10**6,
}


def tensors() -> dict[str, torch.Tensor]:
    return {"hidden": torch.arange(300.0).view(100, 3), "reference_chosen": torch.arange(100.0)}


def saved(root: Path) -> FeatureCache:
    cache = FeatureCache(root, KEY)
    cache.save(tensors())
    return cache


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    saved(tmp_path)
    loaded = FeatureCache(tmp_path, KEY).load()
    assert loaded is not None
    assert {name: value.tolist() for name, value in loaded.items()} == {n: v.tolist() for n, v in tensors().items()}


def test_an_empty_cache_holds_nothing(tmp_path: Path) -> None:
    assert FeatureCache(tmp_path, KEY).load() is None
    assert FeatureCache(tmp_path, KEY).load_parts() == []


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(CacheKey)])
def test_every_part_of_the_key_counts(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    other = dataclasses.replace(KEY, **{name: OTHER[name]})
    assert other.name != KEY.name
    assert FeatureCache(tmp_path, other).load() is None


@pytest.mark.parametrize("position", [0, 12, 200, -1], ids=["length", "header", "data", "last byte"])
def test_a_flipped_byte_anywhere_is_noticed(position: int, tmp_path: Path) -> None:
    cache = saved(tmp_path)
    path = cache.folder / FEATURES
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert cache.load() is None


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_noticed(keep: int, tmp_path: Path) -> None:
    cache = saved(tmp_path)
    path = cache.folder / FEATURES
    path.write_bytes(path.read_bytes()[:keep])
    assert cache.load() is None


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b"null", b"{}", b'{"key": {}, "sha256": ""}', b"\xff\xfe"])
def test_a_damaged_manifest_is_noticed(manifest: bytes, tmp_path: Path) -> None:
    cache = saved(tmp_path)
    (cache.folder / MANIFEST).write_bytes(manifest)
    assert cache.load() is None


def test_a_file_under_the_wrong_key_is_not_used(tmp_path: Path) -> None:
    cache = saved(tmp_path)
    other = FeatureCache(tmp_path, dataclasses.replace(KEY, dtype="bfloat16"))
    cache.folder.rename(other.folder)
    assert other.load() is None


def test_a_file_without_its_manifest_is_not_used(tmp_path: Path) -> None:
    cache = saved(tmp_path)
    (cache.folder / MANIFEST).unlink()
    assert cache.load() is None


def test_parts_fill_the_rows_they_carry_and_vanish_when_all_is_saved(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, KEY)
    for rows in (torch.tensor([5, 0, 2]), torch.tensor([4, 1, 3])):
        cache.save_part(rows, {name: value[rows] for name, value in tensors().items()})
    whole = fill(cache.load_parts(), 6)
    assert {name: value.tolist() for name, value in whole.items()} == {n: v[:6].tolist() for n, v in tensors().items()}
    cache.save(whole)
    assert sorted(path.name for path in cache.folder.iterdir()) == [FEATURES, MANIFEST]


@pytest.mark.parametrize("damage", ["flip", "cut", "no hash"])
def test_a_damaged_part_is_dropped_and_the_others_are_kept(damage: str, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, KEY)
    for start in (0, 3):
        rows = torch.arange(start, start + 3)
        cache.save_part(rows, {name: value[rows] for name, value in tensors().items()})
    first = min(cache.folder.glob("part-*.safetensors"))
    content = first.read_bytes()
    if damage == "flip":
        first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        first.write_bytes(content[:-4])
    else:
        first.with_suffix(".sha256").unlink()
    assert [part["rows"].tolist() for part in cache.load_parts()] == [[3, 4, 5]]


def test_copies_are_the_same_bytes_and_carry_the_manifest(tmp_path: Path) -> None:
    cache = saved(tmp_path / "cache")
    for _ in range(2):  # a second copy replaces the first
        cache.copy_to(tmp_path / "run")
    assert (tmp_path / "run" / FEATURES).read_bytes() == (cache.folder / FEATURES).read_bytes()
    manifest = json.loads((tmp_path / "run" / "features.manifest.json").read_text())
    assert manifest["key"] == dataclasses.asdict(KEY)
