"""How can a batch be computed with every distinct prefix only once? Merge its sequences into a prefix trie.

Chosen and rejected share their prompt, prompts share templates and openings. Laid out depth-first, the trie is one
packed sequence: a node's depth is its position id, and node i sees node j exactly when j is i or one of its ancestors,
that is when j <= i < end(j), end(j) being where the subtree of j ends. A sliding window of w tokens asks besides for
depth(i) - depth(j) < w. What this is good for, and where it does not work: `docs/packing.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class Costs:
    """What a pass over n nodes costs: near `fixed + n + n^2 / mask`, in units of one node without the mask.

    As it stands measured on the shape of SmolLM2, 32 to 2,000 nodes on one core (2.8 ms a node at 128, 3.3 at 1,000,
    4.4 at 2,000). A backward pass adds up every weight's gradient once a pack, which is why `fixed` is twice what a
    forward pass asks for. On a GPU `passes.calibrate` measures both.
    """

    fixed: float = 32
    mask: float = 3000


CPU_COSTS = Costs()


@dataclass(frozen=True)
class Pack:
    """A prefix trie of token sequences in depth-first order.

    tokens, depth, end: (nodes,) token id, position id, end of the subtree
    paths: for every sequence, in the order given, the node of each of its tokens
    """

    tokens: Tensor
    depth: Tensor
    end: Tensor
    paths: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def sees(self, i: Tensor, j: Tensor, window: int | None = None) -> Tensor:
        """Whether node `i` sees node `j`, for broadcastable integers; `window` as in the module's docstring."""
        visible = (j <= i) & (i < self.end[j])
        return visible if window is None else visible & (self.depth[i] - self.depth[j] < window)

    def mask(self, dtype: torch.dtype = torch.float32, window: int | None = None) -> Tensor:
        """Additive attention mask, (1, 1, nodes, nodes): 0 where node i sees node j, the lowest number elsewhere."""
        node = torch.arange(len(self), device=self.end.device)
        sees = self.sees(node[:, None], node[None, :], window)
        lowest = torch.finfo(dtype).min
        return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, lowest)[None, None]

    def block_mask(self, window: int | None = None) -> BlockMask:
        """The same rule for FlexAttention, which skips the blocks of nodes that see nothing of each other."""
        from torch.nn.attention.flex_attention import create_block_mask

        def rule(batch: Any, head: Any, i: Tensor, j: Tensor) -> Tensor:
            return self.sees(i, j, window)

        return create_block_mask(rule, None, None, len(self), len(self), device=self.end.device)

    def to(self, device: torch.device) -> Pack:
        """This pack with tokens, depth and end on `device`; the paths stay where they are."""
        return Pack(self.tokens.to(device), self.depth.to(device), self.end.to(device), self.paths)


def pack(sequences: Sequence[Sequence[int]]) -> Pack:
    """Merge `sequences` (none empty) into one `Pack`.

    In lexicographic order a sequence shares with the one before it exactly the nodes of their common prefix, so the
    trie comes out depth-first in one sweep.
    """
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    tokens: list[int] = []
    depth: list[int] = []
    end: list[int] = []
    paths: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(sequences)
    path: list[int] = []
    previous: Sequence[int] = ()
    for index in order:
        sequence = sequences[index]
        shared = common_prefix(previous, sequence)
        for node in path[shared:]:
            end[node] = len(tokens)
        del path[shared:]
        for position in range(shared, len(sequence)):
            path.append(len(tokens))
            tokens.append(sequence[position])
            depth.append(position)
            end.append(0)
        paths[index] = torch.tensor(path)
        previous = sequence
    for node in path:
        end[node] = len(tokens)
    return Pack(torch.tensor(tokens), torch.tensor(depth), torch.tensor(end), tuple(paths))


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading items two sequences share."""
    limit = min(len(left), len(right))
    for position in range(limit):
        if left[position] != right[position]:
            return position
    return limit


def distinct_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """How many nodes the trie of `sequences` has."""
    ordered = sorted(map(tuple, sequences))
    shared = sum(common_prefix(left, right) for left, right in pairwise(ordered))
    return sum(map(len, ordered)) - shared


def plan_packs(
    units: Sequence[Sequence[Sequence[int]]], budget: int, packed: bool = True, costs: Costs = CPU_COSTS
) -> list[list[int]]:
    """Group `units` (each a few sequences that belong together) into packs of at most `budget` distinct tokens.

    Units are taken in lexicographic order of their first sequence, so that neighbours share prefixes. A pack is closed
    when its mask has come to cost more than a new pack would: one more pass, and what the next unit shares computed
    again. Without `packed` nothing is shared: units are taken by length, and padding counts. A unit larger than the
    budget gets a pack of its own.
    """
    return _plan_shared(units, budget, costs) if packed else _plan_padded(units, budget)


def _plan_shared(units: Sequence[Sequence[Sequence[int]]], budget: int, costs: Costs) -> list[list[int]]:
    order = sorted(range(len(units)), key=lambda index: tuple(units[index][0]))
    packs: list[list[int]] = []
    size = 0
    previous: Sequence[int] = ()
    for index in order:
        first, *others = units[index]
        alone = len(first) + sum(len(other) - common_prefix(first, other) for other in others)
        shared = common_prefix(previous, first) if packs else 0
        joined = size + alone - shared
        # The average cost of a node, (fixed + shared) / n + 1 + n / mask, is least where this turns.
        if not packs or joined > budget or joined**2 / costs.mask > costs.fixed + shared:
            packs.append([])
            joined = alone
        packs[-1].append(index)
        size, previous = joined, first
    return packs


def _plan_padded(units: Sequence[Sequence[Sequence[int]]], budget: int) -> list[list[int]]:
    order = sorted(range(len(units)), key=lambda index: max(map(len, units[index])))
    packs: list[list[int]] = []
    sequences = 0
    for index in order:
        width = max(map(len, units[index]))
        sequences += len(units[index])
        if not packs or sequences * width > budget:
            packs.append([])
            sequences = len(units[index])
        packs[-1].append(index)
    return packs
