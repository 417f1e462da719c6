"""Attention over a trie by FlexAttention: blocks of nodes that see nothing of each other are skipped."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from margincast.passes.attention.kernel import Heads, TrieKernel
from margincast.passes.packing import Pack

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SMALLEST_HEAD = 16  # of the compiled kernel
# A tile of queries, keys and values must fit into a processor's shared memory. In float32 torch's own choice did not
# for heads of 64 on an H200, so that no kernel was found; tiles of 32 x 32 take 48 KiB with heads of 128.
WIDE_TILES = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_M1": 32, "BLOCK_N1": 32, "BLOCK_M2": 32, "BLOCK_N2": 32}


class Flex(TrieKernel):
    """Takes windows, caps and grouped heads. On a CPU torch has its forward pass only."""

    name = "flex"

    def refusal(self, heads: Heads) -> str | None:
        if heads.device.type == "cpu":
            return "torch has no backward pass of FlexAttention on a CPU" if heads.training else None
        if heads.size < SMALLEST_HEAD:
            return f"FlexAttention takes heads of {SMALLEST_HEAD} or more, and these are {heads.size}"
        if heads.dtype == torch.float64:
            return "FlexAttention has no kernel in float64"
        if heads.dtype == torch.float32 and heads.size > 128:
            return f"FlexAttention has no kernel in float32 for heads of {heads.size}"
        return None

    def layout(self, trie: Pack, window: int | None, heads: Heads) -> BlockMask:
        return trie.block_mask(window)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: BlockMask, scale: float, softcap: float | None
    ) -> Tensor:
        groups = len(query) // len(key)
        if groups & (groups - 1):  # the kernel takes groups that are powers of two
            key, value, groups = key.repeat_interleave(groups, dim=0), value.repeat_interleave(groups, dim=0), 1

        wide = query.device.type != "cpu" and query.dtype == torch.float32
        attended: Tensor = _attention(query.device.type != "cpu")(
            query[None],
            key[None],
            value[None],
            score_mod=None if softcap is None else _capped(softcap),
            block_mask=layout,
            scale=scale,
            enable_gqa=groups > 1,
            kernel_options={**WIDE_TILES, "num_stages": 1} if wide else None,
        )
        return attended[0]


@cache
def _attention(compiled: bool) -> Callable[..., Any]:
    """Compiled once for tries of any size: with fixed shapes each new size took 15 s. On a CPU as it is."""
    from torch.nn.attention.flex_attention import flex_attention

    attention: Callable[..., Any] = flex_attention
    return torch.compile(attention, dynamic=True) if compiled else attention


def _capped(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


FLEX = Flex()
