"""Which kernel attends to a trie, on this device and with this model? And how does the model come to call it?

A kernel is called in the layers' place of their own attention, through transformers' `AttentionInterface`: for the time
of a pass the model's configuration names `NAME`, and the trie comes along as an argument that layers hand on. Models
whose layers do not, or whose attention is no function of the interface, are found out by `packing_problem`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from margincast.passes.attention.dense import DENSE
from margincast.passes.attention.flex import FLEX
from margincast.passes.attention.joined import JOINED
from margincast.passes.attention.kernel import Heads, TrieKernel
from margincast.passes.hooks import unwrapped
from margincast.passes.packing import Pack, pack

NAME, TRIE = "margincast_trie", "margincast_trie"
KERNELS: dict[str, TrieKernel] = {kernel.name: kernel for kernel in (JOINED, FLEX, DENSE)}
# The fastest first. On a CPU a model's own attention, given a mask, is faster than a call for every segment.
PREFERRED: dict[str, tuple[str, ...]] = {"cuda": ("joined", "flex", "dense"), "cpu": ()}
# How far a kernel's attention, and its gradients, may be from the same in float32 with a mask, of the largest number.
AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclass
class Attention:
    """The kernels of one model on its device.

    preferred: names, in the order in which they are taken; where none is left the model's own attention gets a mask
    refused: by name, why one is not taken;  used: how many packs each attended to
    """

    preferred: tuple[str, ...]
    refused: dict[str, str] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    _checked: set[tuple[str, Heads]] = field(default_factory=set)
    _last: str | None = None

    def kernel(self, model: Any, trie: Pack) -> TrieKernel | None:
        """The kernel for `trie`, or None for the model's own attention."""
        self._last = None
        if not self.left:
            return None
        heads = heads_of(model)
        for name in self.left:
            kernel = KERNELS[name]
            if kernel.takes(trie) and self._able(kernel, heads):
                self.used[name] = self.used.get(name, 0) + 1
                self._last = name
                return kernel
        return None

    @property
    def left(self) -> tuple[str, ...]:
        return tuple(name for name in self.preferred if name not in self.refused)

    def drop(self, reason: str) -> bool:
        """Refuse the kernel of the last pack, for `reason`; False where it was attended to by the model itself."""
        if self._last is None:
            return False
        self.refused[self._last], self._last = reason, None
        return True

    def _able(self, kernel: TrieKernel, heads: Heads) -> bool:
        if (kernel.name, heads) not in self._checked:
            reason = kernel.refusal(heads) or disagreement(kernel, heads)
            if reason is not None:
                self.refused[kernel.name] = reason
                return False
            self._checked.add((kernel.name, heads))
        return True


def heads_of(model: Any) -> Heads:
    """Of the model's attention, as its configuration has it, in the dtype that a pass would attend in now."""
    config = unwrapped(model).config.get_text_config()
    count = config.num_attention_heads
    device = next(model.parameters()).device
    return Heads(
        size=getattr(config, "head_dim", None) or config.hidden_size // count,
        query=count,
        key=getattr(config, "num_key_value_heads", None) or count,
        dtype=activation_dtype(device, unwrapped(model).dtype),
        device=device,
        softcap=bool(getattr(config, "attn_logit_softcapping", None)),
        training=torch.is_grad_enabled(),
    )


def activation_dtype(device: torch.device, own: torch.dtype) -> torch.dtype:
    """What attention computes in: under autocast its dtype, else `own`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else own


class TrieLayout:
    """A trie as `kernel` needs it, laid out once for each sliding window that layers ask for."""

    def __init__(self, kernel: TrieKernel, trie: Pack, heads: Heads) -> None:
        self.kernel, self.trie, self.heads = kernel, trie, heads
        self.deepest = int(trie.depth.max())
        self._laid: dict[int | None, Any] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float, softcap: float | None
    ) -> Tensor:
        if window is not None and self.deepest < window:
            window = None
        if window not in self._laid:
            self._laid[window] = self.kernel.layout(self.trie, window, self.heads)
        return self.kernel.attend(query, key, value, self._laid[window], scale, softcap)


def trie_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
) -> tuple[Tensor, None]:
    """One layer's attention, as transformers calls it: (1, heads, nodes, size) in, (1, nodes, heads, size) out."""
    layout = options.get(TRIE)
    if layout is None:
        raise RuntimeError(f"{type(module).__name__} does not hand on the trie that its attention is over")
    for name in ("s_aux", "position_bias"):
        if options.get(name) is not None:
            raise RuntimeError(f"{type(module).__name__} adds {name} to its scores, which no trie kernel does")
    if options.get("dropout"):
        raise RuntimeError(f"{type(module).__name__} drops attention, which no trie kernel does")
    dtype = activation_dtype(query.device, value.dtype)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    states = (each[0].to(dtype) for each in (query, key, value))
    attended = layout.attend(*states, options.get("sliding_window"), scale, options.get("softcap"))
    return attended.transpose(0, 1)[None].contiguous(), None


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """Within, the layers of `model` attend by `trie_attention`. A backward pass that computes layers again must be
    within, too."""
    _register()
    config = unwrapped(model).config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def is_attending(model: Any) -> bool:
    return bool(unwrapped(model).config.get_text_config()._attn_implementation == NAME)


@cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, trie_attention)


def disagreement(kernel: TrieKernel, heads: Heads) -> str | None:
    """Why `kernel` cannot be trusted with `heads`: on a small trie with a window and without, its attention and
    gradients against those of a mask. None where they agree."""
    if kernel.name == DENSE.name:
        return None
    trie = pack([[1] * 40, [1] * 20 + [2] * 30, [1] * 20 + [2] * 9 + [3] * 9, [4] * 11]).to(heads.device)
    for window in (None, 7):
        try:
            ours = _attended(kernel, trie, window, heads)
        except Exception as error:  # whatever a kernel does with what it cannot take
            return f"it fails: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        theirs = _attended(DENSE, trie, window, heads, exact=True)
        names = ("attention", "the gradient in queries", "the gradient in keys", "the gradient in values")
        for name, mine, other in zip(names, ours, theirs, strict=False):
            gap = float((mine.double() - other.double()).abs().max() / other.double().abs().max())
            if not gap <= AGREEMENT[heads.dtype]:
                return f"{name} differs by {gap:.2g} from that with a mask"
    return None


def _attended(
    kernel: TrieKernel, trie: Pack, window: int | None, heads: Heads, exact: bool = False
) -> Sequence[Tensor]:
    """Attention over `trie` of seeded random states and, where a backward pass may come, gradients in these states."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(count, len(trie), heads.size) for count in (heads.query, heads.key, heads.key, heads.query)]
    drawn = [torch.randn(shape, generator=generator).to(heads.dtype).to(heads.device) for shape in shapes]
    *states, towards = (each.to(torch.promote_types(each.dtype, torch.float32)) if exact else each for each in drawn)
    wide = Heads(heads.size, heads.query, heads.key, states[0].dtype, heads.device)
    with torch.enable_grad() if heads.training else torch.no_grad(), torch.autocast(heads.device.type, enabled=False):
        states = [each.requires_grad_(heads.training) for each in states]
        query, key, value = states
        out = kernel.attend(query, key, value, kernel.layout(trie, window, wide), heads.size**-0.5, None)
        gradients = torch.autograd.grad(out, states, towards) if heads.training else ()
    return [out.detach(), *gradients]
