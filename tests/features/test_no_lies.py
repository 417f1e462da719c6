"""Features never come from a cache of something else, and never from numbers that are not finite."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from margincast.errors import InputError
from margincast.features import extract_features
from margincast.features.cache import FEATURES
from margincast.features.entries import entries, shrink
from margincast.features.positions import extract_positions
from margincast.models import LoadedModel
from margincast.passes.response_pass import packing_problem, response_pass
from margincast.passes.tokenize import Encoded, encode
from margincast.records import PairSet
from tests.problems import make_pairs
from tests.tiny import CHAT_TEMPLATE, tiny_loaded, tiny_model, tiny_tokenizer

PAIRS = make_pairs(12)
TRAIN, HELDOUT = PairSet(PAIRS.pairs[:9]), PairSet(PAIRS.pairs[9:])


def chatty(pairs: PairSet) -> PairSet:
    def message(role: str, text: Any) -> Any:
        return ({"role": role, "content": text},)

    return PairSet(
        tuple(
            dataclasses.replace(
                pair,
                prompt=message("user", pair.prompt),
                chosen=message("assistant", pair.chosen),
                rejected=message("assistant", pair.rejected),
            )
            for pair in pairs
        )
    )


def made(cache: Path) -> int:
    return len(list(cache.glob(f"features/*/{FEATURES}")))


@pytest.mark.parametrize("change", ["template", "date", "added token", "weight in place", "kernel", "config"])
def test_what_changed_under_the_same_name_and_hash_is_read_anew(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    if change == "date":
        tokenizer.chat_template = CHAT_TEMPLATE + "{{ strftime_now('%d') }}"
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Day(3))
    loaded = LoadedModel("tiny", "the same hash", tiny_model(), tokenizer)
    train, heldout = chatty(TRAIN), chatty(HELDOUT)

    def hidden() -> torch.Tensor:
        return extract_features(loaded, train, heldout, cache_dir=tmp_path).train.hidden

    before = hidden()
    count = made(tmp_path)
    assert torch.equal(hidden(), before) and made(tmp_path) == count
    if change == "template":
        tokenizer.chat_template = CHAT_TEMPLATE.replace("</s>", "</s> ")
    elif change == "date":
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Day(4))
    elif change == "added token":
        tokenizer.add_special_tokens({"additional_special_tokens": ["would you"]})
        loaded.model.resize_token_embeddings(len(tokenizer))
    elif change == "weight in place":
        with torch.no_grad():
            loaded.model.model.layers[0].mlp.up_proj.weight[0, 0] += 1.0
    elif change == "kernel":
        loaded.model.set_attn_implementation("eager")
    else:
        loaded.model.config.rope_scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    hidden()
    assert made(tmp_path) > count


class Day:
    """A stand-in for `datetime` whose today is a day of the month."""

    def __init__(self, day: int) -> None:
        self.day = day

    def now(self) -> Day:
        return self

    def strftime(self, wanted: str) -> str:
        return f"{self.day:02d}"


def test_padding_with_the_end_of_sequence_token_changes_nothing(tmp_path: Path) -> None:
    """Masks are explicit: no token is looked for to find out what is padding."""
    plain, same = tiny_tokenizer(), tiny_tokenizer()
    same.pad_token = same.eos_token
    long = make_pairs(6)
    assert encode(long, plain, eos=True).rows == encode(long, same, eos=True).rows
    for packed in (True, False):
        rows = encode(long, plain, eos=True).rows
        with torch.no_grad():
            first, second = (response_pass(configured(pad), rows, packed) for pad in (0, 2))
        assert torch.equal(first.chosen, second.chosen) and torch.equal(first.hidden, second.hidden)


def configured(pad: int) -> Any:
    model = tiny_model()
    model.config.pad_token_id = pad
    return model


def overflowing(token: int) -> Any:
    """A model whose first layer overflows wherever it reads `token`, from finite weights."""
    model = tiny_model()

    def first_layer(module: Any, given: Any, output: Any) -> Any:
        return output.masked_fill((tokens_of["now"] == token)[..., None], float("inf"))

    tokens_of: dict[str, torch.Tensor] = {}
    model.model.embed_tokens.register_forward_pre_hook(lambda module, given: tokens_of.update(now=given[0]))
    model.model.layers[0].mlp.register_forward_hook(first_layer)
    return model


BATCH = (
    Encoded((11, 12, 13, 14), (50,), (51,)),
    Encoded((11, 12, 13, 77), (50, 52), (51,)),
    Encoded((11, 12, 15), (50,), (51, 53)),
)


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_not_finite_in_one_pair_stays_in_it(packed: bool) -> None:
    """In a trie attention weighs what may not be seen with 0, and 0 x NaN would spread."""
    with torch.no_grad():
        clean, broken = (response_pass(model, BATCH, packed, (0,)) for model in (tiny_model(), overflowing(77)))
    assert broken.chosen.isfinite().tolist() == [True, False, True]
    for name in ("chosen", "rejected", "hidden", "layers"):
        torch.testing.assert_close(getattr(broken, name)[[0, 2]], getattr(clean, name)[[0, 2]], rtol=1e-4, atol=1e-4)
    assert not broken.hidden[1].isfinite().all()
    assert packing_problem(overflowing(77), BATCH) is None


@pytest.mark.parametrize("extract", [extract_features, extract_positions])
def test_the_first_pair_and_layer_that_are_not_finite_are_named(extract: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = encode(PAIRS, tokenizer).rows
    token = next(t for t in rows[4].prompt if sum(t in row.prompt for row in rows) == 1)
    loaded = LoadedModel("tiny", "tiny", overflowing(token), tokenizer)
    says = rf"line {PAIRS[4].line}: what tiny computes for pair {PAIRS[4].id} is not finite: layer 1 of 2 \(Llama"
    with pytest.raises(InputError, match=says):
        extract(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    assert made(tmp_path) == 0


def test_the_cache_lists_what_it_has_and_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    for number, train in enumerate((TRAIN, PairSet(TRAIN.pairs[1:]), PairSet(TRAIN.pairs[2:]))):
        extract_features(loaded, train, HELDOUT, cache_dir=tmp_path, layers=False)
        for path in tmp_path.glob("features/*/*"):
            if path.stat().st_mtime > 1e8:
                os.utime(path, (1000.0 * number, 1000.0 * number))
    there = entries(tmp_path)
    assert [entry.about.split(" (")[0] for entry in there] == [f"{n} pairs, tiny llama 0" for n in (12, 11, 10)]
    assert all(entry.size == sum(p.stat().st_size for p in entry.folder.iterdir()) for entry in there)
    extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False)  # the oldest is used again
    gone = shrink(tmp_path, there[0].size + there[2].size, since=float("inf"))
    assert gone == [there[1]]
    assert [entry.name for entry in entries(tmp_path)] == [there[2].name, there[0].name]
    assert shrink(tmp_path, 0.0, since=1500.0) == []  # both were used later
    assert len(shrink(tmp_path, 0.0, since=float("inf"))) == 2
