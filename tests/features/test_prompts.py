"""Features of prompts: weighted means over the model's own states, prompt by prompt."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from margincast.features.prompts import extract_prompts
from margincast.passes.tokenize import encode
from margincast.records import Pair, PairSet
from tests.tiny import tiny_loaded


def make(prompts: list[str], start: int) -> PairSet:
    return PairSet(
        tuple(Pair(f"p{start + k}", "all", text, " Yes", " No", "made", k + 1) for k, text in enumerate(prompts))
    )


def test_they_are_weighted_means_of_the_states_that_the_unembedding_receives(tmp_path: Path) -> None:
    train = make(["What is a cat?", "What is a dog house?", "x", "What is a cat?"], 0)
    heldout = make(["Why not?", "What is a cat?"], 4)
    loaded = tiny_loaded()
    found = extract_prompts(loaded, train, heldout, cache_dir=tmp_path)
    encoded = encode(PairSet(train.pairs + heldout.pairs), loaded.tokenizer).rows
    held = [set(row.prompt) for row in encoded[:4]]
    expected = []
    for row in encoded:
        with torch.no_grad():
            states = loaded.model.model(input_ids=torch.tensor([row.prompt])).last_hidden_state[0].double()
        weight = [math.log(6 / (sum(token in tokens for tokens in held) + 1)) for token in row.prompt]
        weights = torch.tensor(weight, dtype=torch.float64)
        expected.append((weights[:, None] * states).sum(dim=0) / weights.sum())
    torch.testing.assert_close(
        torch.cat([found.train, found.heldout]).double(), torch.stack(expected), rtol=1e-4, atol=1e-5
    )
    assert found.train_pairs is train and len(repr(found)) < 100


def test_a_second_call_reads_them(tmp_path: Path) -> None:
    train, heldout = make(["What is a cat?", "What is a dog house?"], 0), make(["Why not?"], 2)
    loaded = tiny_loaded()
    first = extract_prompts(loaded, train, heldout, cache_dir=tmp_path)
    loaded.model.forward = None  # whoever asks the model now fails
    again = extract_prompts(loaded, train, heldout, cache_dir=tmp_path)
    assert torch.equal(first.train, again.train) and torch.equal(first.heldout, again.heldout)


def test_another_cut_of_the_same_rows_has_other_weights(tmp_path: Path) -> None:
    model = tiny_loaded()
    pairs = make(["What is a cat?", "What is a dog house?", "Why not?", "And a cat house?", "No dog?"], 0)
    extract_prompts(model, pairs[:-2], pairs[-2:], cache_dir=tmp_path / "one")
    again = extract_prompts(model, pairs[:2], pairs[2:], cache_dir=tmp_path / "one")
    anew = extract_prompts(model, pairs[:2], pairs[2:], cache_dir=tmp_path / "other")
    assert torch.equal(again.train, anew.train) and torch.equal(again.heldout, anew.heldout)


def test_a_model_in_memory_is_read_as_a_loaded_one(tmp_path: Path) -> None:
    train, heldout, loaded = make(["What is a cat?", "Why?"], 0), make(["Why not?"], 2), tiny_loaded()
    found = extract_prompts((loaded.model, loaded.tokenizer), train, heldout, cache_dir=tmp_path / "pair")
    known = extract_prompts(loaded, train, heldout, cache_dir=tmp_path / "loaded")
    assert torch.equal(found.train, known.train) and torch.equal(found.heldout, known.heldout)
