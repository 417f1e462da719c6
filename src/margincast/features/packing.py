"""How can a batch be computed with every distinct prefix only once? Merge its sequences into a prefix trie.

Chosen and rejected share their prompt, prompts share templates and openings. Laid out depth-first, the trie is one
packed sequence: a node's depth is its position id, and node i sees node j exactly when j is i or one of its ancestors,
that is when j <= i < end(j), end(j) being where the subtree of j ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def mask(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Additive attention mask, (1, 1, nodes, nodes): 0 where node i sees node j, the lowest number elsewhere."""
        node = torch.arange(len(self))
        sees = (node[None, :] <= node[:, None]) & (node[:, None] < self.end[None, :])
        return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[None, None]


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


def plan_packs(units: Sequence[Sequence[Sequence[int]]], budget: int, packed: bool = True) -> list[list[int]]:
    """Group `units` (each a few sequences that belong together) into packs of at most `budget` distinct tokens.

    Units are taken in lexicographic order of their first sequence, so that neighbours share prefixes. A unit larger
    than the budget gets a pack of its own. Without `packed` nothing is shared, and every token counts.
    """
    order = sorted(range(len(units)), key=lambda index: list(units[index][0]))
    packs: list[list[int]] = []
    size = budget + 1
    previous: Sequence[int] = ()
    for index in order:
        first, *others = units[index]
        alone = added = len(first) + sum(map(len, others))
        if packed:
            alone -= sum(common_prefix(first, other) for other in others)
            added = alone - common_prefix(previous, first)
        if size + added > budget:
            packs.append([])
            size, added = 0, alone
        packs[-1].append(index)
        size += added
        previous = first
    return packs
