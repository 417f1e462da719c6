"""How is a model called with a trie? With a mask for its own attention, or within another attention, with the trie."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from margincast.passes.attention.choice import TRIE, TrieLayout, activation_dtype, attending, heads_of, is_attending
from margincast.passes.attention.dense import DENSE
from margincast.passes.hooks import unwrapped
from margincast.passes.packing import Pack
from margincast.passes.plan import plan_of


def trie_arguments(model: Any, trie: Pack) -> tuple[AbstractContextManager[None], dict[str, Any]]:
    """How `model` is called with `trie`: within what, and with which arguments."""
    # Layers that are computed again in the backward pass need their attention there too: who does that is attending.
    kept = is_attending(model) or not (torch.is_grad_enabled() and _again(model))
    kernel = plan_of(model).attention.kernel(model, trie) if kept else None
    if kernel is None and not is_attending(model):
        return nullcontext(), {"attention_mask": attention_mask(model, trie)}
    layout = TrieLayout(kernel or DENSE, trie, heads_of(model))
    return attending(model), {"attention_mask": None, TRIE: layout}


def attention_mask(model: Any, trie: Pack) -> Any:
    """The mask of `trie` as `model`'s own attention takes it: additive, in the dtype of its activations, or, for
    FlexAttention, by blocks; one, or one per kind of layer.

    Sequences within the sliding window need no window. Beyond it, a configuration that names no kinds of layers has one
    kind (Mistral), and one that names several takes a mask for each (Gemma 2).
    """
    config = unwrapped(model).config.get_text_config()

    def mask(window: int | None) -> Any:
        flex = config._attn_implementation == "flex_attention"
        dtype = activation_dtype(trie.tokens.device, unwrapped(model).dtype)
        return trie.block_mask(window) if flex else trie.mask(dtype, window)

    window = getattr(config, "sliding_window", None)
    if not window or int(trie.depth.max()) < window:
        return mask(None)
    kinds = dict.fromkeys(getattr(config, "layer_types", None) or ["sliding_attention"])
    masks = {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}
    return masks if len(masks) > 1 else masks.popitem()[1]


def attended_throughout(model: Any) -> AbstractContextManager[None]:
    """Forward and backward passes within attend alike, also where layers are computed again in the backward pass."""
    return attending(model) if _again(model) and plan_of(model).attention.left else nullcontext()


def _again(model: Any) -> bool:
    """Whether layers are computed again in the backward pass. transformers renamed the property in 5."""
    inner = unwrapped(model)
    new = getattr(inner, "is_activation_checkpointing", None)
    return bool(getattr(inner, "is_gradient_checkpointing", False) if new is None else new)
