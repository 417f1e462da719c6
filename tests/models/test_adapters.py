"""A model in memory, with an adapter or without; a LoRA folder, merged or not; what each takes as its reference."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from margincast.errors import InputError
from margincast.features import extract_features
from margincast.features.positions import extract_positions
from margincast.models import load_model
from margincast.passes.tokenize import encode
from margincast.records import Features
from tests.oracles import response_logp
from tests.problems import make_pairs
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tolerances import TOLERANCE, error

FORWARD = TOLERANCE[torch.float32].forward
TRAIN, HELDOUT = make_pairs(12).split(holdout=0.25, seed=0)


def adapted(trained: bool, **settings: Any) -> PeftModel:
    """A tiny model in a LoRA adapter; `trained`: with a second factor that is not zero."""
    torch.manual_seed(0)
    targets = {"target_modules": ["q_proj", "down_proj"], **settings}
    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", r=3, lora_dropout=0.5, **targets))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if trained and "lora_B" in name:
                weight.normal_(0.0, 0.5)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model, and an adapter's folder that names it."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = adapted(trained=True)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def assert_reads(features: Features, policy: Any, reference: Any) -> None:
    """Features are the policy's, log-probabilities the reference's, one response at a time."""
    for row, hidden, logp in zip(
        encode(TRAIN, tiny_tokenizer()).rows, features.train.hidden, features.train.reference_chosen, strict=True
    ):
        with torch.no_grad():
            own = policy(input_ids=torch.tensor([row.prompt]), output_hidden_states=True).hidden_states[-1][0, -1]
            assert error(hidden, own) <= FORWARD
            assert error(logp, response_logp(reference, row.prompt, row.chosen)) <= FORWARD


def test_a_model_in_memory_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.transformer.drop.p = 0.5
    model.train()
    model.transformer.h[0].eval()  # as somebody has it
    features = extract_features((model, tiny_tokenizer()), TRAIN, HELDOUT, cache_dir=tmp_path)
    assert model.training and model.transformer.drop.p == 0.5 and not model.transformer.h[0].training
    assert_reads(features, tiny_model("gpt2"), tiny_model("gpt2"))
    positions = extract_positions((model, tiny_tokenizer()), TRAIN, HELDOUT, cache_dir=tmp_path)
    assert error(positions.train.hidden[::2], features.train.hidden) <= FORWARD


def test_a_loaded_pair_is_as_a_loaded_folder(folder: Path) -> None:
    pair = load_model((tiny_model().train(), tiny_tokenizer()))
    assert not pair.model.training
    assert pair.hash == load_model((tiny_model(), tiny_tokenizer())).hash
    assert pair.hash != load_model((tiny_model(seed=1), tiny_tokenizer())).hash
    assert pair.hash != load_model((tiny_model(), tiny_tokenizer(bos=True))).hash


@pytest.mark.parametrize("trained", [False, True])
def test_the_reference_of_an_adapter_is_the_model_without(trained: bool, tmp_path: Path) -> None:
    model = adapted(trained)
    features = extract_features((model, tiny_tokenizer()), TRAIN, HELDOUT, cache_dir=tmp_path, layers=False)
    assert_reads(features, copy.deepcopy(model).eval(), tiny_model())
    assert (features.train.start_chosen is not None) == trained
    positions = extract_positions((model, tiny_tokenizer()), TRAIN, HELDOUT, cache_dir=tmp_path)
    assert (positions.train.start is not None) == trained
    assert error(positions.train.as_single(TRAIN).reference_chosen, features.train.reference_chosen) <= FORWARD


def test_a_lora_folder_is_its_base_with_the_adapter_on_top(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(folder)
    model, base = adapted(trained=True).eval(), tiny_model()
    ids = torch.arange(20, 32)[None]
    assert error(loaded.model(ids).logits, model(ids).logits) <= FORWARD
    assert_reads(extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path), model, base)
    merged = load_model(folder, merge_adapter=True)
    assert not hasattr(merged.model, "disable_adapter")
    features = extract_features(merged, TRAIN, HELDOUT, cache_dir=tmp_path)
    assert features.train.start_chosen is None
    assert_reads(features, model, model)
    assert len({loaded.hash, merged.hash, load_model(folder.parent / "base").hash}) == 3


def test_transformers_own_adapters_are_adapters_too(folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    model.load_adapter(str(folder))
    features = extract_features((model.eval(), tiny_tokenizer()), TRAIN, HELDOUT, cache_dir=tmp_path)
    assert_reads(features, adapted(trained=True).eval(), tiny_model())


@pytest.mark.parametrize("fault", ["no base", "base gone", "no part", "other part", "other model", "config a list"])
def test_an_adapter_that_is_not_of_its_model_is_refused(fault: str, folder: Path) -> None:
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    said, tensors = json.loads(config.read_text()), load_file(weights)
    first = min(tensors)
    says = {
        "no base": "does not say of which model it is",
        "base gone": r"is of the model './gone', which cannot be used: .*base_model_name_or_path",
        "no part": r"has no base_model\.model\.model\.layers\.0\.\S+; it is not of this model",
        "other part": r"has weights its model has no place for: \S+layers\.7\.",
        "other model": r"cannot be put on its model: .*nothing",
        "config a list": "where a JSON object belongs",
    }
    if fault in ("no base", "base gone"):
        config.write_text(json.dumps({**said, "base_model_name_or_path": None if fault == "no base" else "./gone"}))
    elif fault == "no part":
        save_file({name: each for name, each in tensors.items() if name != first}, weights)
    elif fault == "other part":
        save_file({**tensors, first.replace("layers.0", "layers.7"): tensors[first].clone()}, weights)
    elif fault == "other model":
        config.write_text(json.dumps({**said, "target_modules": ["nothing"]}))
    else:
        config.write_text("[]")
    with pytest.raises(InputError, match=says[fault]) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_an_adapter_on_the_unembedding_is_merged_or_refused(tmp_path: Path) -> None:
    model = adapted(trained=True, target_modules=["lm_head"])
    with pytest.raises(InputError, match=r"changes the unembedding.*model\.merge_and_unload"):
        extract_features((model, tiny_tokenizer()), TRAIN, HELDOUT, cache_dir=tmp_path)
