"""Splitting parts every concept on its own, completely, and the same way every time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from margincast.data import load_pairs
from margincast.errors import InputError
from margincast.records import Pair, PairSet

COUNTS = st.dictionaries(st.sampled_from("abcde"), st.integers(2, 40), min_size=1)
HOLDOUT = st.floats(0.01, 0.99)
SEED = st.integers(0, 2**32)


def _pairs(counts: dict[str, int]) -> PairSet:
    return PairSet(
        tuple(
            Pair(f"{concept}:{line}", concept, f"{concept} {line}", " Yes", " No", f"{concept}.jsonl", line)
            for concept, count in counts.items()
            for line in range(1, count + 1)
        )
    )


@given(COUNTS, HOLDOUT, SEED)
def test_parts_are_disjoint_and_complete_and_keep_the_order(counts, holdout, seed):
    pairs = _pairs(counts)
    train, heldout = pairs.split(holdout, seed)
    held = set(heldout)
    assert not held & set(train)
    assert tuple(pair for pair in pairs if pair in held) == heldout.pairs
    assert tuple(pair for pair in pairs if pair not in held) == train.pairs


@given(COUNTS, HOLDOUT, SEED)
def test_each_concept_gives_its_share_and_at_least_one_to_each_part(counts, holdout, seed):
    train, heldout = _pairs(counts).split(holdout, seed)
    for concept, count in counts.items():
        share = heldout.counts[concept]
        assert share == min(max(round(holdout * count), 1), count - 1)
        assert train.counts[concept] == count - share


@given(COUNTS, HOLDOUT, SEED)
def test_the_same_seed_gives_the_same_parts(counts, holdout, seed):
    first, second = _pairs(counts).split(holdout, seed), _pairs(counts).split(holdout, seed)
    assert [part.fingerprint for part in first] == [part.fingerprint for part in second]


@given(COUNTS, HOLDOUT, SEED, st.integers(2, 40))
def test_adding_a_concept_leaves_the_others_as_they_were(counts, holdout, seed, added):
    _, alone = _pairs(counts).split(holdout, seed)
    _, together = _pairs({"new": added} | counts).split(holdout, seed)
    assert tuple(pair for pair in together if pair.concept != "new") == alone.pairs


def test_another_seed_gives_other_parts():
    pairs = _pairs({"a": 100})
    assert pairs.split(seed=1)[1].pairs != pairs.split(seed=2)[1].pairs


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_holdout_outside_its_range(holdout):
    with pytest.raises(InputError, match="holdout must be between 0 and 1"):
        _pairs({"a": 10}).split(holdout)


def test_too_few_pairs_to_split():
    with pytest.raises(InputError, match="too few to split"):
        _pairs({"a": 1, "b": 1}).split()


def test_real_split_holds_out_a_tenth_of_each_persona(persona_dir):
    train, heldout = load_pairs("persona:k4", persona_dir=persona_dir).split(holdout=0.1)
    assert set(heldout.counts.values()) == {100}
    assert set(train.counts.values()) == {900}
