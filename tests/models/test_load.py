"""Loading: what is loaded, how it is named, what is refused; dropout off; the unembedding untied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.bloom import BloomConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_bigcode import GPTBigCodeConfig
from transformers.models.llama import LlamaConfig
from transformers.models.opt import OPTConfig

from margincast.errors import InputError, StatedFailure
from margincast.models import load as loading
from margincast.models import load_model, untie
from margincast.models.place import Place, locate
from tests.tiny import randomised, tiny_loaded, tiny_model, tiny_tokenizer

IDS = torch.arange(20, 32)[None]
GEMMA2: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": None,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_folder_loads_as_it_was(folder: Path) -> None:
    loaded = load_model(str(folder))
    assert not loaded.model.training
    assert loaded.context == 96
    assert torch.equal(loaded.model(IDS).logits, tiny_model("llama")(IDS).logits)
    assert loaded.tokenizer("What would you say")["input_ids"] == tiny_tokenizer()("What would you say")["input_ids"]
    assert next(load_model(str(folder), dtype="bfloat16").model.parameters()).dtype == torch.bfloat16


def test_the_hash_names_the_content_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    first = load_model(str(folder)).hash
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_model(str(moved)).hash == first
    (moved / "README.md").write_text("of no consequence")
    assert load_model(str(moved)).hash == first


@pytest.mark.parametrize("changed", ["weights", "tokenizer", "configuration", "chat template"])
def test_the_hash_changes_with_whatever_changes_the_numbers(changed: str, folder: Path) -> None:
    first = load_model(str(folder)).hash
    if changed == "weights":
        model = tiny_model("llama")
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1e-3
        model.save_pretrained(folder)
    elif changed == "tokenizer":
        tiny_tokenizer(bos=True).save_pretrained(folder)
    elif changed == "configuration":
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    else:
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert load_model(str(folder)).hash != first


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="dtype 'int8' is not known; use one of: auto, float32"):
        load_model(str(folder), dtype="int8")


@pytest.mark.parametrize(
    "given, says",
    [
        (lambda model, tokenizer: model, "the model is of type LlamaForCausalLM; give"),
        (lambda model, tokenizer: (tokenizer, model), "the wrong way round; give"),
        (
            lambda model, tokenizer: ("path", "path"),
            "the first of (model, tokenizer) is of type str, which is no model",
        ),
        (lambda model, tokenizer: (torch.nn.Linear(1, 1), tokenizer), "is of type Linear, which is no model"),
        (lambda model, tokenizer: (model, None), "the second of (model, tokenizer) is None, which is no tokenizer"),
        (lambda model, tokenizer: (model.to("meta"), tokenizer), "model.embed_tokens.weight is on the device meta"),
        (lambda model, tokenizer: (model, tokenizer, 1), "the model is a tuple of 3; give"),
    ],
)
def test_what_is_no_pair_of_model_and_tokenizer_is_refused(given: Any, says: str, tmp_path: Path) -> None:
    what = given(tiny_model(), tiny_tokenizer())
    for read in (load_model, lambda model: loading.opened(model, tmp_path)):
        with pytest.raises(InputError) as caught:
            read(what)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["weights cut", "weights flipped", "no weights", "no json", "no such type"])
def test_a_folder_that_cannot_be_loaded_is_refused_in_one_line(damage: str, folder: Path) -> None:
    weights = folder / "model.safetensors"
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "weights flipped":
        weights.write_bytes(b"\xff" + weights.read_bytes()[1:])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no json":
        (folder / "config.json").write_text("{")
    else:
        (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(InputError, match="cannot be loaded: ") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-model", "a/b/c", "", "  ", "../x"])
def test_paths_that_hold_nothing_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not exist; give smollm2, a local folder or a Hub id"):
        locate(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; give a folder written by save_pretrained"):
        locate(str(tmp_path))


def test_a_hub_id_is_passed_on_and_one_that_cannot_be_had_is_a_stated_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise OSError("We couldn't connect to the hub\nand here is a long story")

    assert locate("owner/name") == Place("owner/name")
    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    monkeypatch.setattr(loading, "adapter_on_hub", lambda *arguments: None)
    monkeypatch.setattr("margincast.hub.reachable", lambda: True)
    with pytest.raises(
        StatedFailure,
        match=r"^model 'owner/name' cannot be loaded: We couldn't connect to the hub; nor is .*",
    ):
        load_model("owner/name")


SMALL: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16}
DROPPING: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "llama": lambda: LlamaConfig(
        **SMALL, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, attention_dropout=0.3
    ),
    "opt": lambda: OPTConfig(
        **SMALL, ffn_dim=20, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16, layerdrop=0.5
    ),
    "bloom": lambda: BloomConfig(**SMALL, n_layer=2, n_head=2, hidden_dropout=0.3, attention_dropout=0.3),
    "gpt_bigcode": lambda: GPTBigCodeConfig(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32),
}


@pytest.mark.parametrize("architecture", DROPPING)
def test_training_mode_drops_nothing(architecture: str) -> None:
    """Reference and policy agree at step 0 only if the model says the same in training mode as in evaluation mode."""
    model = randomised(DROPPING[architecture]())  # ends with disable_dropout
    with torch.no_grad():
        quiet = model(IDS).logits
        model.train()
        assert all(torch.allclose(model(IDS).logits, quiet, rtol=1e-5, atol=1e-5) for _ in range(3))


def test_an_untied_head_moves_alone() -> None:
    model = tiny_model("llama")
    before = model(IDS).logits
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    head = untie(model)
    assert torch.equal(model(IDS).logits, before)
    with torch.no_grad():
        head.weight.mul_(2.0)
    assert torch.allclose(model(IDS).logits, 2.0 * before, rtol=1e-5)
    assert not torch.equal(head.weight, embedding)
    assert untie(model) is head


def test_an_untied_head_survives_saving(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    head = untie(loaded.model)
    with torch.no_grad():
        head.weight.mul_(2.0)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path)).model
    assert torch.equal(again.get_output_embeddings().weight, head.weight)
    assert torch.equal(again.get_input_embeddings().weight, loaded.model.get_input_embeddings().weight)


def test_a_head_that_was_not_tied_is_left_as_it_is() -> None:
    model = tiny_model("gpt_neox")
    weight = model.get_output_embeddings().weight
    assert untie(model).weight is weight


def test_an_attention_that_caps_is_not_taken_without_its_cap(tmp_path: Path) -> None:
    """Under every transformers: some give Gemma 2 an attention that leaves the cap out."""
    capped, free = (randomised(Gemma2Config(**GEMMA2, attn_logit_softcapping=cap)) for cap in (0.01, 1e6))
    free.load_state_dict(capped.state_dict())
    capped.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model")).model
    torch.testing.assert_close(loaded(IDS).logits, capped(IDS).logits)
    assert float((loaded(IDS).logits - free(IDS).logits).abs().max()) > 1e-2


def test_a_tokenizer_that_a_newer_transformers_wrote_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 4 says that it does not know the class; what it then reads is the same tokenizer."""

    def unknown(*_: Any, **__: Any) -> None:
        raise ValueError("Tokenizer class TokenizersBackend does not exist or is not currently imported.")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unknown)
    read = load_model(str(folder)).tokenizer
    assert read("What would you say")["input_ids"] == tiny_tokenizer()("What would you say")["input_ids"]
