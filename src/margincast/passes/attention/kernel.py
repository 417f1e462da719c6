"""What is an attention kernel for tries? Something that says what it cannot take, lays a trie out, and attends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from margincast.passes.packing import Pack


@dataclass(frozen=True)
class Heads:
    """What the attention of a model is made of, as far as a kernel can ask.

    size: of a head;  query, key: heads of queries, and of keys and values;  dtype: what they are attended in
    softcap: whether scores are capped;  training: whether a backward pass may come
    """

    size: int
    query: int
    key: int
    dtype: torch.dtype
    device: torch.device
    softcap: bool = False
    training: bool = True


class TrieKernel(ABC):
    """Attention of every node of a trie to its ancestors and itself, or to those within a window."""

    name: str

    def refusal(self, heads: Heads) -> str | None:
        """Why this kernel cannot attend with such heads; None where it can."""
        return None

    def takes(self, trie: Pack) -> bool:
        """Whether this kernel is worth its while for `trie`."""
        return True

    @abstractmethod
    def layout(self, trie: Pack, window: int | None, heads: Heads) -> Any:
        """What `attend` needs of a trie, made once for all layers with the same sliding window."""

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Any, scale: float, softcap: float | None
    ) -> Tensor:
        """query: (query heads, nodes, size);  key, value: (key heads, nodes, size);  returns the shape of `query`.

        scale: of the scores, before they are capped at `softcap`
        """
