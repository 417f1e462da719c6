"""Multi-token responses on the real model and real conversations."""

from __future__ import annotations

from pathlib import Path

import pytest

from margincast.data import load_pairs
from margincast.models import load_model
from margincast.passes.tokenize import encode
from margincast.records import PairSet
from tests.features.test_positions import head_rates, our_rates

pytestmark = pytest.mark.real


def test_rates_on_the_real_model_and_real_responses(shared: Path, cache_dir: Path, tmp_path: Path) -> None:
    loaded = load_model("smollm2", cache_dir=cache_dir)
    pairs = load_pairs(str(shared / "data" / "hh-helpful" / "train.jsonl"), on_bad_row="skip")
    encoding = encode(PairSet(pairs.pairs[:6]), loaded.tokenizer, eos=True, on_bad_row="skip")
    features, rates = our_rates(loaded, encoding, tmp_path)
    assert len(features.hidden) > 100
    expected = head_rates(loaded, encoding)
    assert float((rates - expected).abs().max() / expected.abs().max()) <= 1e-3
