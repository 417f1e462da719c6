"""Attention over a trie by a mask of nodes x nodes, through torch's scaled_dot_product_attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from margincast.passes.attention.kernel import Heads, TrieKernel
from margincast.passes.packing import Pack


class Dense(TrieKernel):
    """Takes every model and every trie. The mask is in the dtype of the activations: with one in float32 beside
    queries in bfloat16 torch leaves its fast kernels."""

    name = "dense"

    def layout(self, trie: Pack, window: int | None, heads: Heads) -> Tensor:
        return trie.mask(heads.dtype, window)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        groups = len(query) // len(key)
        key, value = (each.repeat_interleave(groups, dim=0) for each in (key, value))
        if softcap is None:
            return scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=layout, scale=scale)[0]
        scores = softcap * torch.tanh(scale * query @ key.transpose(-1, -2) / softcap) + layout[0]
        wide = torch.promote_types(scores.dtype, torch.float32)
        return torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype) @ value


DENSE = Dense()
