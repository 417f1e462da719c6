"""A GGUF file as a model: the same logits and tokens as the model it was written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from margincast.errors import InputError
from margincast.models import load_model
from margincast.models.tiny import save_tiny

gguf = pytest.importorskip("gguf")
# Of a Llama's layer: transformers' names and GGUF's.
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def rotated(weight: Any, heads: int) -> Any:
    """GGUF keeps the two halves of a rotary pair beside each other."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(folder: Path, path: Path) -> Path:
    """The Llama and the tokenizer of `folder`, as llama.cpp's converter lays them out, in float32."""
    loaded = load_model(folder)
    config, state = loaded.model.config, {name: each.numpy() for name, each in loaded.model.state_dict().items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    pieces = json.loads((folder / "tokenizer.json").read_text())["model"]
    words = sorted(pieces["vocab"], key=pieces["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word == "<|end|>" else 1 for word in words])
    writer.add_token_merges([" ".join(merge) for merge in pieces["merges"]])
    writer.add_bos_token_id(words.index("<|end|>"))  # without one transformers 5.15 cannot read the other, eos
    writer.add_eos_token_id(words.index("<|end|>"))
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in LAYER.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = rotated(weight, config.num_attention_heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_the_model_it_was_written_from(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    path = write_gguf(folder, tmp_path / "tiny.gguf")
    plain, loaded = load_model(folder), load_model(path, cache_dir=tmp_path / "cache")
    text = "Is the weather good?\n Yes"
    ids = plain.tokenizer(text, return_tensors="pt")["input_ids"]
    assert loaded.tokenizer(text)["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, plain.model(ids).logits, rtol=1e-5, atol=1e-5)
    (made,) = (each for each in (tmp_path / "cache" / "models").iterdir() if each.is_dir())
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert load_model(str(path), cache_dir=tmp_path / "cache").hash == loaded.hash
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp  # made once


def test_what_is_no_gguf_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(InputError, match=r"broken\.gguf cannot be read as a GGUF model: ") as caught:
        load_model(tmp_path / "broken.gguf", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"'\./none\.gguf' does not exist"):
        load_model("./none.gguf")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a file; give a \.gguf file, a folder"):
        load_model(tmp_path / "model.bin")
