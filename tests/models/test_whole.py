"""Models that would break quietly: weights that are missing, misshapen or not finite, configs of another kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from margincast.errors import InputError
from margincast.features import extract_features
from margincast.models import LoadedModel, load_model
from margincast.models.device import resolve_device, resolve_dtype
from tests.problems import make_pairs
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def configured(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def rewritten(folder: Path, change: Any) -> Path:
    """The checkpoint with its tensors as `change`, a function of them, leaves them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"num_hidden_layers": 3}, r"has no model\.layers\.2\.\S+, .* and 6 more; it is not the model of its config"),
        ({"num_hidden_layers": 1}, r"has weights its config does not know: model\.layers\.1\."),
        ({"hidden_size": 32}, r"has \S+ of shape 400 x 24|has \S+ of shape .*24.*, and its config says .*32"),
        ({"vocab_size": 401}, r"embed_tokens\.weight of shape 400 x 24, and its config says 401 x 24"),
        ({"model_type": "gpt2"}, r"has no|has weights its config does not know"),
        ({"tie_word_embeddings": False}, r"has no lm_head\.weight"),
    ],
    ids=["layers missing", "layers left over", "hidden size", "vocabulary", "architecture", "head"],
)
def test_a_checkpoint_of_another_config_is_refused_by_name(changes: Any, says: str, folder: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_model(configured(folder, **changes))
    assert "\n" not in str(caught.value)


def test_a_tied_head_and_old_buffers_are_no_fault(folder: Path) -> None:
    def older(tensors: dict[str, torch.Tensor]) -> None:
        assert "lm_head.weight" not in tensors
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)

    assert load_model(rewritten(folder, older)).model.get_output_embeddings() is not None


@pytest.mark.parametrize("held", ["[]", "3", '"llama"', "null"])
def test_a_config_that_is_no_object_is_refused(held: str, folder: Path) -> None:
    (folder / "config.json").write_text(held)
    with pytest.raises(InputError, match=r"cannot be loaded: its config\.json holds .* where a JSON object belongs"):
        load_model(folder)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_named(value: str, folder: Path) -> None:
    def damaged(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float(value)

    says = r"1 of 960 numbers in model\.layers\.1\.mlp\.up_proj\.weight are not finite; the checkpoint is damaged"
    with pytest.raises(InputError, match=says):
        load_model(rewritten(folder, damaged))
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float(value)
    with pytest.raises(InputError, match=says):
        load_model((model, tiny_tokenizer()))


def test_weights_too_large_for_float16_say_so(folder: Path) -> None:
    def large(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][0] = 1e5

    assert load_model(rewritten(folder, large)).dtype == "float32"
    with pytest.raises(InputError, match=r"model\.norm\.weight .*nothing above 65,504: read it with --dtype float32"):
        load_model(folder, dtype="float16")


def test_a_revision_of_what_is_no_hub_model_is_refused(folder: Path) -> None:
    for name in (str(folder), "tiny"):
        with pytest.raises(
            InputError, match=r"--revision v1 names a version on the Hub, and the model .* is not there"
        ):
            load_model(name, revision="v1")


def test_a_quantised_model_on_a_cpu_is_refused_in_one_line(folder: Path) -> None:
    configured(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(InputError, match=r"is quantised \(bitsandbytes\), which is read on a CUDA device alone.*cpu"):
        load_model(folder, device="cpu")


def test_a_tokenizer_larger_than_the_model_is_refused_before_any_pass(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    grown = model.get_input_embeddings().num_embeddings - len(tokenizer)
    tokenizer.add_tokens([*(f"<{number}>" for number in range(grown)), " something"])
    model.forward = None  # any pass would fail in another way
    train, heldout = make_pairs(8).split(holdout=0.25, seed=0)
    says = r"the token ' something' has the id 400, and the embedding of .* has 400 rows.*resize_token_embeddings"
    with pytest.raises(InputError, match=says):
        extract_features(LoadedModel("tiny", "tiny", model, tokenizer), train, heldout, cache_dir=tmp_path)


def test_auto_takes_what_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    assert load_model(folder).device == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (resolve_device("auto"), resolve_device("cuda:1"), resolve_device("cpu")) == ("cuda", "cuda:1", "cpu")


def test_auto_is_float32_where_it_fits_and_else_the_checkpoints_own(folder: Path) -> None:
    assert resolve_dtype("auto", torch.bfloat16, 10**6, "cpu") == torch.float32
    assert resolve_dtype("auto", torch.bfloat16, 10**15, "cpu") == torch.bfloat16
    assert resolve_dtype("auto", torch.float32, 10**15, "cpu") == torch.float32
    assert resolve_dtype("float16", torch.bfloat16, 10**6, "cpu") == torch.float16
    tiny_model(dtype=torch.bfloat16).save_pretrained(folder)
    assert load_model(folder).dtype == "float32"
    assert load_model(folder, dtype="bfloat16").dtype == "bfloat16"
