"""Does a run with compiled layers give the margins of one without, and go on where they cannot be compiled?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from margincast.errors import InputError
from margincast.features import features_of
from margincast.passes.hooks import decoder_layers
from margincast.passes.tokenize import encode
from margincast.recipe.recipe import Recipe
from margincast.training import compiled
from margincast.training.prepare import refuse_sharded
from margincast.training.run import train_model
from tests.problems import make_pairs
from tests.tiny import tiny_loaded, tiny_model

RECIPE = Recipe(beta=0.1, learning_rate=1e-3, max_steps=4, per_device_train_batch_size=3, eval_steps=2)
Train = Callable[..., tuple[torch.Tensor, Any]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Held-out margins of a run, and its model."""
    pairs, loaded = make_pairs(10), tiny_loaded()
    encoding = encode(pairs, loaded.tokenizer, eos=False)
    features = features_of(loaded, encoding, pairs[:8], pairs[8:], cache_dir=tmp_path / "cache")

    def run(folder: str, recipe: Recipe, **options: Any) -> tuple[torch.Tensor, Any]:
        fresh = replace(loaded, model=copy.deepcopy(loaded.model))
        trajectory = train_model(fresh, encoding, features, recipe, tmp_path / folder, save_model=False, **options)
        return trajectory.heldout.margins, fresh.model

    return run


def test_margins_are_those_without(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's tracing; its code generator, which takes half a minute, is set aside here."""
    graphs = []

    def traced(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", traced)
    said: list[str] = []
    plain, _ = train("plain", RECIPE)
    ours, model = train("compiled", replace(RECIPE, torch_compile=True), say=said.append)
    assert said == []
    assert 0 < len(graphs) < 8  # of all layers and lengths, not one for each
    assert all(layer._compiled_call_impl is not None for layer in decoder_layers(model))
    torch.testing.assert_close(ours, plain, rtol=0.0, atol=1e-5)
    assert float(plain.abs().max()) > 1e-3


def test_what_cannot_be_compiled_is_said_once_and_trained_without(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    said: list[str] = []
    ours, model = train("compiled", replace(RECIPE, torch_compile=True), say=said.append)
    assert len(said) == 1 and said[0].startswith("torch_compile is left out: ") and "no compiler here" in said[0]
    assert "\n" not in said[0]
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(model))
    assert torch.equal(ours, train("plain", RECIPE)[0])


def test_sharded_layers_are_not_compiled() -> None:
    with pytest.raises(InputError, match="torch_compile was not tried"):
        refuse_sharded(replace(RECIPE, torch_compile=True), tiny_model())
