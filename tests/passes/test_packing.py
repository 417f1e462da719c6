"""The prefix trie: every sequence is spelt by its path, and every token sees its own prefix and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from margincast.passes.packing import common_prefix, distinct_tokens, pack, plan_packs
from tests.oracles import sees_loop

# Three tokens make shared, nested and repeated sequences common.
sequences = st.lists(st.integers(0, 2), min_size=1, max_size=7)
sets = st.lists(sequences, min_size=1, max_size=9)


@given(sets)
def test_every_path_spells_its_sequence_at_rising_positions(given_sets: list[list[int]]) -> None:
    trie = pack(given_sets)
    for path, sequence in zip(trie.paths, given_sets, strict=True):
        assert trie.tokens[path].tolist() == sequence
        assert trie.depth[path].tolist() == list(range(len(sequence)))


@given(sets)
def test_every_distinct_prefix_is_one_node(given_sets: list[list[int]]) -> None:
    trie = pack(given_sets)
    assert len(trie) == len({tuple(s[:k]) for s in given_sets for k in range(1, len(s) + 1)})
    assert sorted(set(torch.cat(trie.paths).tolist())) == list(range(len(trie)))


@given(sets)
def test_the_mask_shows_a_token_itself_and_its_ancestors(given_sets: list[list[int]]) -> None:
    trie = pack(given_sets)
    prefix = {}
    for path, sequence in zip(trie.paths, given_sets, strict=True):
        prefix.update({node: tuple(sequence[: k + 1]) for k, node in enumerate(path.tolist())})
    mask = trie.mask()
    assert mask.shape == (1, 1, len(trie), len(trie))
    seen = {(prefix[i], prefix[j]) for i, j in (mask[0, 0] == 0.0).nonzero().tolist()}
    assert seen == sees_loop(given_sets)
    hidden = mask[mask != 0.0]
    assert bool((hidden == torch.finfo(torch.float32).min).all())


@given(sets, st.integers(1, 5))
def test_a_window_hides_what_is_too_many_tokens_back(given_sets: list[list[int]], window: int) -> None:
    trie = pack(given_sets)
    near = (trie.depth[:, None] - trie.depth[None, :]) < window
    assert torch.equal(trie.mask(window=window)[0, 0] == 0.0, (trie.mask()[0, 0] == 0.0) & near)


@given(sets)
def test_distinct_tokens_are_the_nodes(given_sets: list[list[int]]) -> None:
    assert distinct_tokens(given_sets) == len(pack(given_sets))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_hidden_positions_have_the_lowest_finite_number_of_the_dtype(dtype: torch.dtype) -> None:
    mask = pack([[1, 2], [1, 3]]).mask(dtype)
    assert mask.dtype == dtype
    assert float(mask.min()) == torch.finfo(dtype).min
    assert float(mask.max()) == 0.0


def test_a_trie_written_out_by_hand() -> None:
    trie = pack([[5, 7, 9], [5], [5, 7, 8], [4]])
    assert trie.tokens.tolist() == [4, 5, 7, 8, 9]
    assert trie.depth.tolist() == [0, 0, 1, 2, 2]
    assert trie.end.tolist() == [1, 5, 5, 4, 5]
    assert [path.tolist() for path in trie.paths] == [[1, 2, 4], [1], [1, 2, 3], [0]]


@given(sequences, sequences)
def test_common_prefix(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert left[: length + 1] != right[: length + 1] or length == min(len(left), len(right))


units = st.lists(st.lists(sequences, min_size=1, max_size=3), max_size=12)


@given(units, st.integers(1, 30))
def test_plans_hold_every_unit_once_and_keep_the_budget(given_units: list[list[list[int]]], budget: int) -> None:
    packs = plan_packs(given_units, budget)
    assert sorted(index for members in packs for index in members) == list(range(len(given_units)))
    assert all(packs)
    for members in packs:
        size = len(pack([sequence for index in members for sequence in given_units[index]]))
        assert size <= budget or len(members) == 1


def test_a_shared_prompt_is_counted_once() -> None:
    prompt = [1] * 50
    plan = plan_packs([[[*prompt, k], [*prompt, k + 20]] for k in range(20)], budget=90)
    assert plan == [list(range(20))]
    assert len(plan_packs([[[*prompt, k], [*prompt, k + 20]] for k in range(20)], budget=89)) == 2


def test_a_pack_is_closed_where_its_mask_costs_more_than_a_new_pass() -> None:
    """Nothing shared: a pack ends near 310 nodes. With a prompt of 300 tokens in common it pays to go on."""
    apart = [[[unit, *range(10)], [unit, *range(5, 15)]] for unit in range(100)]
    assert {len(members) for members in plan_packs(apart, budget=2000)[:-1]} == {14}  # of 21 nodes: 294
    prompt = list(range(300))
    shared = [[[*prompt, unit, *range(10)], [*prompt, unit, *range(5, 15)]] for unit in range(100)]
    assert [len(members) for members in plan_packs(shared, budget=2000)] == [33, 33, 33, 1]  # 300 + 33 x 21 = 993


@given(units, st.integers(1, 30))
def test_padded_plans_hold_every_unit_once_and_count_the_padding(
    given_units: list[list[list[int]]], budget: int
) -> None:
    plan = plan_packs(given_units, budget, packed=False)
    assert sorted(index for members in plan for index in members) == list(range(len(given_units)))
    widths = [[max(map(len, given_units[index])) for index in members] for members in plan]
    assert [width for batch in widths for width in batch] == sorted(width for batch in widths for width in batch)
    for members, width in zip(plan, widths, strict=True):
        assert max(width) * sum(len(given_units[index]) for index in members) <= budget or len(members) == 1
