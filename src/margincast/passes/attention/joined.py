"""Attention over a trie with no mask at all: calls of variable length (`segments`), joined by their log-sum-exp.

With o_c and l_c the output of call c at a query and the log-sum-exp of its scores there, attention over all of the keys
is sum_c exp(l_c - l) o_c with l = log sum_c exp(l_c). Its gradient needs no more than what kernels have: softmax over
all of the keys is exp(score - l), so that the backward pass of each call, given the joined output and l in place of
its own, gives that call's part of the gradient. Ring attention is put together in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from margincast.passes.attention.kernel import Heads, TrieKernel
from margincast.passes.attention.segments import Call, calls, levels
from margincast.passes.packing import Pack

# Each level is one more call a layer. Beyond so many a trie of short segments is attended to faster by a mask.
LEVELS = 6
FLASH_DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256


class Joined(TrieKernel):
    """On a CUDA device through torch's FlashAttention, elsewhere by `Plain`, one part after the other."""

    name = "joined"

    def refusal(self, heads: Heads) -> str | None:
        if heads.softcap:
            return "scores are soft-capped, which torch's FlashAttention does not do"
        if heads.device.type != "cuda":
            return None
        if heads.dtype not in FLASH_DTYPES:
            return f"FlashAttention has no kernel in {str(heads.dtype).removeprefix('torch.')}"
        if heads.size % 8 or heads.size > LARGEST_HEAD:
            return f"FlashAttention takes heads of a multiple of 8 up to {LARGEST_HEAD}, and these are {heads.size}"
        if torch.cuda.get_device_capability(heads.device) < (8, 0):
            return "FlashAttention asks for compute capability 8.0 or more"
        return None

    def takes(self, trie: Pack) -> bool:
        return levels(trie) <= LEVELS

    def layout(self, trie: Pack, window: int | None, heads: Heads) -> list[Call]:
        return calls(trie, window)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Sequence[Call], scale: float, softcap: float | None
    ) -> Tensor:
        if softcap is not None:
            raise ValueError("scores that are soft-capped cannot be joined")
        by_node = (each.transpose(0, 1).contiguous() for each in (query, key, value))
        attended: Tensor = _JoinedCalls.apply(*by_node, layout, scale)  # type: ignore[no-untyped-call]
        return attended.transpose(0, 1)


class _JoinedCalls(torch.autograd.Function):
    """query: (nodes, query heads, size);  key, value: (nodes, key heads, size)"""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Sequence[Call], scale: float) -> Tensor:
        part, wide = _part(query), torch.promote_types(query.dtype, torch.float32)
        out = torch.zeros_like(query, dtype=wide)
        total = torch.full(query.shape[:2], -torch.inf, dtype=wide, device=query.device)
        for call in layout:
            mine, lse = part.forward(_at(query, call), key[call.key], value[call.key], call, scale)
            before = _at(total, call)
            joined = torch.logaddexp(before, lse)
            both = _at(out, call) * (before - joined).exp()[..., None] + mine * (lse - joined).exp()[..., None]
            if call.query is None:
                out, total = both, joined
            else:
                out[call.query], total[call.query] = both, joined
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        gradient, part = gradient.contiguous(), _part(query)
        sums = [torch.zeros_like(each, dtype=total.dtype) for each in (query, key, value)]
        every = torch.arange(len(query), device=query.device)
        for call in ctx.layout:
            states = (_at(query, call), key[call.key], value[call.key])
            parts = part.backward(
                _at(gradient, call), states, _at(out, call), _at(total, call).contiguous(), call, ctx.scale
            )
            places = (every if call.query is None else call.query, call.key, call.key)
            for whole, place, mine in zip(sums, places, parts, strict=True):
                whole.index_add_(0, place, mine.to(whole.dtype))
        return *(each.to(query.dtype) for each in sums), None, None


def _at(states: Tensor, call: Call) -> Tensor:
    return states if call.query is None else states[call.query]


class Plain:
    """A call in plain torch, part by part: what a flash kernel computes, written down. For CPUs."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        """(queries, heads, size) outputs and (queries, heads) log-sum-exps, float32 at least."""
        wide = torch.promote_types(query.dtype, torch.float32)
        out, lse = torch.empty_like(query, dtype=wide), torch.empty(query.shape[:2], dtype=wide)
        for mine, others, scores in _scores(query, key, call, scale):
            lse[mine] = scores.logsumexp(dim=-1).T
            out[mine] = (scores.softmax(dim=-1) @ _grouped(value[others], query)).transpose(0, 1)
        return out, lse

    @staticmethod
    def backward(
        gradient: Tensor, states: tuple[Tensor, Tensor, Tensor], out: Tensor, lse: Tensor, call: Call, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients in queries, keys and values; `out`, `lse` and `gradient` are of the joined attention."""
        query, key, value = states
        sums = [torch.zeros_like(each, dtype=lse.dtype) for each in states]
        # d score = p (dp - sum p dp), whose last sum is that of gradient times output.
        inner = (gradient.to(lse.dtype) * out.to(lse.dtype)).sum(dim=-1)
        groups = query.shape[1] // key.shape[1]
        for mine, others, scores in _scores(query, key, call, scale):
            p = (scores - lse[mine].T[..., None]).exp()
            towards = gradient[mine].to(lse.dtype).transpose(0, 1)
            through = towards @ _grouped(value[others], query).transpose(-1, -2)
            by_score = scale * p * (through - inner[mine].T[..., None])
            sums[0][mine] = (by_score @ _grouped(key[others], query)).transpose(0, 1)
            for whole, each in (
                (sums[1], by_score.transpose(-1, -2) @ query[mine].to(lse.dtype).transpose(0, 1)),
                (sums[2], p.transpose(-1, -2) @ towards),
            ):
                whole[others] = each.view(-1, groups, *each.shape[1:]).sum(dim=1).transpose(0, 1)
        return sums[0], sums[1], sums[2]


def _grouped(states: Tensor, query: Tensor) -> Tensor:
    """(keys, key heads, size) as (query heads, keys, size), wide."""
    groups = query.shape[1] // states.shape[1]
    return states.to(torch.promote_types(states.dtype, torch.float32)).transpose(0, 1).repeat_interleave(groups, dim=0)


def _scores(query: Tensor, key: Tensor, call: Call, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Of every part: queries, keys, and (heads, queries, keys) scores, -inf where one does not see the other."""
    first, second = call.query_starts.tolist(), call.key_starts.tolist()
    for number in range(len(first) - 1):
        mine, others = slice(*first[number : number + 2]), slice(*second[number : number + 2])
        states = query[mine].to(torch.promote_types(query.dtype, torch.float32)).transpose(0, 1)
        scores = scale * states @ _grouped(key[others], query).transpose(-1, -2)
        if call.causal:
            queries, keys = scores.shape[-2:]
            ahead = torch.arange(keys)[None] - (torch.arange(queries)[:, None] + keys - queries)
            hidden = ahead > 0 if call.window is None else (ahead > 0) | (ahead <= -call.window)
            scores = scores.masked_fill(hidden, -torch.inf)
        yield mine, others, scores


class Flash:
    """A call by torch's own FlashAttention. In causal parts of unlike lengths its mask is aligned at the last query
    and the last key, as `Call` says (`torch.nn.attention.varlen` and `bias` call it so)."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *_sizes(call), 0.0, call.causal, False, scale=scale, **_window(call)
        )
        return out.float(), lse.transpose(0, 1)

    @staticmethod
    def backward(
        gradient: Tensor, states: tuple[Tensor, Tensor, Tensor], out: Tensor, lse: Tensor, call: Call, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = torch.zeros(2, dtype=torch.uint64, device=out.device)  # of dropout, of which there is none
        unused = torch.empty(0, dtype=torch.uint64, device=out.device)
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            gradient, *states, out, lse.transpose(0, 1).contiguous(), *_sizes(call), 0.0, call.causal, state, unused,
            scale=scale, **_window(call),
        )  # fmt: skip
        return found


def _sizes(call: Call) -> tuple[Tensor, Tensor, int, int]:
    return call.query_starts, call.key_starts, *call.longest


def _window(call: Call) -> dict[str, int]:
    if call.window is None:
        return {}
    return {"window_size_left": call.window - 1, "window_size_right": 0}


def _part(query: Tensor) -> type[Plain] | type[Flash]:
    return Flash if query.device.type == "cuda" else Plain


JOINED = Joined()
