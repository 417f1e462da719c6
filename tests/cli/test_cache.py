"""`margincast cache`: what is kept, how large it is, and what goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from margincast.features.cache import CacheKey, FeatureCache
from tests.cli.helpers import run
from tests.cli.test_bad_input import refused


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    for number in range(3):
        key = CacheKey("weights", "config", "float32", "sdpa", f"tokens {number}", True)
        about = {"model": "tiny", "pairs": 10 + number}
        FeatureCache(tmp_path, key).save({"hidden": torch.zeros(1000 * (number + 1), 10)}, about)
    (tmp_path / "models" / "tiny-1").mkdir(parents=True)
    (tmp_path / "models" / "tiny-1" / "config.json").write_text("{}")
    return tmp_path


def listed(kept: Path, *words: str) -> list[dict[str, object]]:
    outcome = run("cache", "--cache_dir", kept, *words, "--json")
    assert outcome.status == 0
    found: list[dict[str, object]] = json.loads(outcome.out)["entries"]
    return found


def test_it_lists_sizes_and_clears_by_name_or_all(kept: Path) -> None:
    rows = listed(kept)
    assert sorted((row["kind"], row["bytes"] > 40_000) for row in rows) == [("features", True)] * 3 + [("model", False)]  # type: ignore[operator]
    outcome = run("cache", "--cache_dir", kept)
    assert "10 pairs, tiny (pairs)" in outcome.out and "4 entries, 23" in outcome.out and "KiB" in outcome.out
    refused(run("cache", "--cache_dir", kept, "--clear", "nothing"), "--clear nothing: nothing of that name", "tiny-1")
    assert len(listed(kept, "--clear", str(rows[0]["name"]))) == 3
    assert listed(kept, "--clear", "all") == []
    assert not list(kept.glob("features/*")) and not list(kept.glob("models/*"))


def test_a_limit_keeps_what_fits(kept: Path) -> None:
    gib = 150_000 / (1 << 30)
    rows = listed(kept, "--cache_limit", str(gib))
    assert 0 < sum(int(str(row["bytes"])) for row in rows) <= 150_000
