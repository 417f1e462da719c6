"""The records: what a fingerprint tells apart, how sets split, what a check concludes."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from margincast.errors import InputError
from margincast.records import Check, FeatureSet, Pair, PairSet
from tests.problems import make_pairs

PAIRS = make_pairs(12, concepts=3)


def chat(*contents: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": "user", "content": content} for content in contents)


def test_a_set_is_a_sequence_of_its_pairs() -> None:
    assert len(PAIRS) == 12
    assert list(PAIRS) == [PAIRS[k] for k in range(12)]
    assert PAIRS[-1] in PAIRS
    assert PAIRS.concepts == ("concept-0", "concept-1", "concept-2")
    assert PAIRS.counts == {"concept-0": 4, "concept-1": 4, "concept-2": 4}
    assert not PAIRS[0].conversational


@pytest.mark.parametrize("field", ["id", "concept", "prompt", "chosen", "rejected", "statement"])
def test_the_fingerprint_sees_every_change_of_content(field: str) -> None:
    changed = dataclasses.replace(PAIRS[5], **{field: "something else"})
    assert PairSet((*PAIRS.pairs[:5], changed, *PAIRS.pairs[6:])).fingerprint != PAIRS.fingerprint


def test_the_fingerprint_sees_order_and_boundaries_and_not_where_a_pair_was_read() -> None:
    assert PairSet(PAIRS.pairs[::-1]).fingerprint != PAIRS.fingerprint
    assert PairSet(PAIRS.pairs[:-1]).fingerprint != PAIRS.fingerprint
    moved = [dataclasses.replace(pair, source="elsewhere", line=99) for pair in PAIRS]
    assert PairSet(tuple(moved)).fingerprint == PAIRS.fingerprint
    one = Pair("p", "c", "ab", "c", "d", "s", 1)
    two = Pair("p", "c", "a", "bc", "d", "s", 1)
    assert PairSet((one,)).fingerprint != PairSet((two,)).fingerprint


def test_the_fingerprint_reads_messages_whatever_mapping_holds_them() -> None:
    def pair(prompt: tuple[object, ...]) -> PairSet:
        return PairSet((Pair("p", "c", prompt, chat("b"), chat("c"), "s", 1),))  # type: ignore[arg-type]

    assert pair(chat("a")).fingerprint == pair(tuple(MappingProxyType(m) for m in chat("a"))).fingerprint
    assert pair(chat("a", "b")).fingerprint != pair(chat("ab")).fingerprint
    assert pair(chat("a"))[0].conversational


sets = st.lists(st.sampled_from("abc"), min_size=2, max_size=30)


@given(sets, st.floats(0.01, 0.99), st.integers(0, 50))
def test_a_split_parts_every_concept(concepts: list[str], holdout: float, seed: int) -> None:
    pairs = PairSet(tuple(Pair(f"p{k}", c, f"q{k}", "a", "b", "s", k + 1) for k, c in enumerate(concepts)))
    if max(pairs.counts.values()) < 2:
        with pytest.raises(InputError, match="too few to split"):
            pairs.split(holdout, seed)
        return
    train, heldout = pairs.split(holdout, seed)
    assert sorted([*train, *heldout], key=lambda pair: pair.line) == list(pairs)
    assert [pair.line for pair in train] == sorted(pair.line for pair in train)
    for concept, total in pairs.counts.items():
        kept = heldout.counts.get(concept, 0)
        assert abs(kept - holdout * total) <= 1.0
        assert kept >= (total > 1)
        assert train.counts.get(concept, 0) >= 1


def test_seeds_give_other_splits_and_other_concepts_do_not() -> None:
    pairs = make_pairs(200, concepts=2)
    assert pairs.split(0.1, 1) == pairs.split(0.1, 1)
    assert pairs.split(0.1, 1) != pairs.split(0.1, 2)
    alone = PairSet(tuple(pair for pair in pairs if pair.concept == "concept-1"))
    held = pairs.split(0.1, 1)[1]
    assert alone.split(0.1, 1)[1].pairs == tuple(pair for pair in held if pair.concept == "concept-1")


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(holdout: float) -> None:
    with pytest.raises(InputError, match="holdout must be between 0 and 1"):
        PAIRS.split(holdout)


def test_too_few_pairs_are_refused() -> None:
    for few in (PairSet(()), PairSet(PAIRS.pairs[:3])):
        with pytest.raises(InputError, match="are too few to split; give at least 2"):
            few.split()


def test_single_tokens_are_counted_on_both_sides() -> None:
    def split(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> FeatureSet:
        zero = torch.zeros(1)
        return FeatureSet(PairSet(PAIRS.pairs[:1]), zero[None], (chosen,), (rejected,), zero, zero)

    assert split((1,), (2,)).single_token
    assert not split((1, 3), (2,)).single_token
    assert not split((1,), (2, 3)).single_token


@pytest.mark.parametrize(
    "left, relation, right, holds",
    [
        (1.0, "<=", 1.0, True),
        (2.0, "<=", 1.0, False),
        (1.0, "<", 1.0, False),
        (1.0, ">=", 1.0, True),
        (1.0, "==", 1.0, True),
        (float("nan"), "<=", 1.0, False),
        (float("nan"), ">=", 1.0, False),
    ],
)
def test_a_check_compares_its_sides(left: float, relation: str, right: float, holds: bool) -> None:
    assert Check("name", left, right, relation).holds is holds


def test_a_check_with_another_relation_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="unknown relation '>'"):
        Check("name", 1.0, 2.0, ">")
