"""Which model shows that a command works, in seconds and offline? A tiny Llama with seeded random weights.

It has learnt nothing: what it says of data is noise, but noise that trains, and the same noise everywhere.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from filelock import FileLock

NAME = "tiny"
LAYOUT = 1  # of the weights; a change makes folders made before unused


def tiny_folder(cache_dir: Path) -> Path:
    """The folder of the tiny model, made on first use in about a second. Safe when several processes ask at once."""
    folder = cache_dir / "models" / f"{NAME}-{LAYOUT}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{NAME}-") as workspace:
                save_tiny(Path(workspace) / "model").rename(folder)
    return folder


def save_tiny(folder: Path) -> Path:
    """Write a Llama of two layers, and a byte-level tokenizer in which " Yes" and " No" are single tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    merges = [("Ġ", "Y"), ("ĠY", "e"), ("ĠYe", "s"), ("Ġ", "N"), ("ĠN", "o")]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges), "<|end|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    pieces = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|end|>", "pad_token": "<|end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, **special)  # type: ignore[no-untyped-call]
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        # Wide enough that the features of different prompts differ.
        initializer_range=0.3,
        eos_token_id=vocabulary["<|end|>"],
        pad_token_id=vocabulary["<|end|>"],
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
