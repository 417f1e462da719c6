"""How much arithmetic is a forward pass? What it cannot do without, whoever does it."""

from __future__ import annotations

from typing import Any

from margincast.passes.packing import Pack


def forward_flops(network: Any, trie: Pack, predicting: int) -> float:
    """Floating-point operations of one pass over the distinct positions of `trie`, each attending to its ancestors, and
    of the logits of `predicting` positions. Two per multiplication."""
    config = network.config
    vocabulary = network.get_output_embeddings().weight.numel()
    inner = sum(parameter.numel() for parameter in network.parameters()) - vocabulary
    if not config.tie_word_embeddings:
        inner -= network.get_input_embeddings().weight.numel()  # looked up, not multiplied
    attended = int(trie.depth.sum()) + len(trie)
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * attended
    return 2.0 * inner * len(trie) + attention + 2.0 * vocabulary * predicting
