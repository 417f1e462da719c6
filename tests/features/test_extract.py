"""Features of a tiny model: what they hold, and when they are read back, continued or made again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from margincast.features import encode, extract, extract_features, features_of
from margincast.features.cache import FEATURES
from margincast.features.tokenize import Encoded
from margincast.models import LoadedModel
from margincast.records import Features, PairSet
from tests.oracles import response_logp
from tests.problems import make_pairs
from tests.tiny import tiny_loaded
from tests.tolerances import TOLERANCE, error

FORWARD = TOLERANCE[torch.float32].forward
PAIRS = make_pairs(24, concepts=3)
TRAIN, HELDOUT = PairSet(PAIRS.pairs[:18]), PairSet(PAIRS.pairs[18:])


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The prompts that the extraction passed through the model, in order."""
    seen: list[tuple[int, ...]] = []
    original = extract.response_pass

    def counted(model: Any, batch: Sequence[Encoded], packed: bool = True) -> Any:
        seen.extend(pair.prompt for pair in batch)
        return original(model, batch, packed)

    monkeypatch.setattr(extract, "response_pass", counted)
    return seen


def assert_same(ours: Features, theirs: Features, tolerance: float) -> None:
    for split in ("train", "heldout"):
        left, right = getattr(ours, split), getattr(theirs, split)
        for name in ("hidden", "reference_chosen", "reference_rejected"):
            assert error(getattr(left, name), getattr(right, name)) <= tolerance
        assert left.chosen_ids == right.chosen_ids
        assert left.pairs == right.pairs


def test_features_are_the_models_own_numbers(loaded: LoadedModel, tmp_path: Path) -> None:
    features = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    assert features.logits == "linear"
    assert features.scale == 1.0
    weight = loaded.model.get_output_embeddings().weight
    assert torch.equal(features.unembedding, weight[features.tokens])
    assert features.tokens.tolist() == sorted(loaded.tokenizer(" Yes No")["input_ids"])
    for split, pairs in ((features.train, TRAIN), (features.heldout, HELDOUT)):
        assert split.single_token
        rows = encode(pairs, loaded.tokenizer).rows
        with torch.no_grad():
            for k, row in enumerate(rows):
                own = loaded.model(input_ids=torch.tensor([row.prompt])).logits[0, -1]
                assert error(weight @ split.hidden[k], own) <= FORWARD
                for reference, side in (
                    (split.reference_chosen, row.chosen),
                    (split.reference_rejected, row.rejected),
                ):
                    assert error(reference[k], response_logp(loaded.model, row.prompt, side)) <= FORWARD
        assert split.chosen_ids == tuple(row.chosen for row in rows)
        assert split.rejected_ids == tuple(row.rejected for row in rows)


def test_multi_token_responses_leave_the_token_rows_empty(loaded: LoadedModel, tmp_path: Path) -> None:
    features = extract_features(loaded, TRAIN, HELDOUT, eos=True, cache_dir=tmp_path)
    assert not features.train.single_token
    assert features.tokens.tolist() == []
    assert features.unembedding.shape == (0, 24)


def test_a_second_call_reads_the_cache(loaded: LoadedModel, tmp_path: Path, computed: list[Any]) -> None:
    first = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    assert len(computed) == len(PAIRS)
    computed.clear()
    assert_same(extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path), first, 0.0)
    assert computed == []


@pytest.mark.parametrize("change", ["model", "split", "tokens", "text"])
def test_other_inputs_are_computed_anew(change: str, loaded: LoadedModel, tmp_path: Path, computed: list[Any]) -> None:
    extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    computed.clear()
    model, train, eos = loaded, TRAIN, None
    if change == "model":
        model = tiny_loaded(seed=1)
    elif change == "split":
        train = PairSet(TRAIN.pairs[1:])
    elif change == "tokens":
        eos = True
    else:
        train = PairSet((dataclasses.replace(TRAIN[0], prompt="Another prompt?\n"), *TRAIN.pairs[1:]))
    extract_features(model, train, HELDOUT, eos=eos, cache_dir=tmp_path)
    assert len(computed) == len(train) + len(HELDOUT)


def test_a_damaged_file_is_made_again_with_the_same_numbers(
    loaded: LoadedModel, tmp_path: Path, computed: list[Any]
) -> None:
    first = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    computed.clear()
    (path,) = tmp_path.glob(f"features/*/{FEATURES}")
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    assert_same(extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path), first, 0.0)
    assert len(computed) == len(PAIRS)
    assert path.read_bytes() != content


def test_a_killed_extraction_is_continued_not_repeated(
    loaded: LoadedModel, tmp_path: Path, computed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "undisturbed")
    computed.clear()
    monkeypatch.setattr(extract, "PACK_TOKENS", 40)
    monkeypatch.setattr(extract, "PART_SECONDS", -1.0)  # keep every pack as soon as it is done
    counted = extract.response_pass

    def killed(model: Any, batch: Sequence[Encoded], packed: bool = True) -> Any:
        if len(computed) >= 10:
            raise KeyboardInterrupt
        return counted(model, batch, packed)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "response_pass", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    before = list(computed)
    assert 10 <= len(before) < len(PAIRS)
    computed.clear()
    continued = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    assert not set(before) & set(computed)
    assert len(before) + len(computed) == len(PAIRS)
    assert_same(continued, whole, FORWARD)
    assert not list(tmp_path.glob("features/*/part-*"))


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_size_of_packs_leaves_the_numbers_unchanged(
    budget: int, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "usual")
    monkeypatch.setattr(extract, "PACK_TOKENS", budget)
    assert_same(extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path), usual, FORWARD)


def test_a_model_that_takes_no_packs_gives_the_same_features(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    monkeypatch.setattr(extract, "packing_problem", lambda model, rows: "made up")
    assert_same(extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path), packed, FORWARD)
    assert len(list(tmp_path.glob("features/*"))) == 2


def test_features_are_put_into_the_run_folder_on_request(loaded: LoadedModel, tmp_path: Path) -> None:
    encoding = encode(PAIRS, loaded.tokenizer)
    for _ in range(2):  # computed, then cached
        features_of(loaded, encoding, TRAIN, HELDOUT, cache_dir=tmp_path / "cache", copy_to=tmp_path / "run")
        assert {path.name for path in (tmp_path / "run").iterdir()} == {FEATURES, "features.manifest.json"}
