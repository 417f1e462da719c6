"""Which parts of a trie attend to which, so that no mask is needed?

A segment is a run of nodes without a branch: the prompt of a pair, each of its responses. A node sees all of the
segments above its own, and its own up to itself. So attention over the trie is that of a few calls of variable length:

    every segment to itself, causally;  for each level of the trie, what lies below a segment to all of that segment

joined by their log-sum-exp. With a sliding window of w tokens one call does: every segment to the last w - 1 nodes
above it and itself, with the window that kernels of variable length know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from margincast.passes.packing import Pack


@dataclass(frozen=True)
class Segment:
    """Nodes `start` to `stop` without a branch; below them those up to `end`. parent: number of the segment above."""

    start: int
    stop: int
    end: int
    parent: int | None
    level: int


@dataclass(frozen=True)
class Call:
    """One attention call of variable length: part p of the queries attends to part p of the keys.

    query, key: the node of each, (queries,) and (keys,); query None: every node, in order
    query_starts, key_starts: (parts + 1,) int32, where each part begins;  longest: of a part, queries and keys
    causal: the last query of a part sees all of its keys, the one before it all but one, and so on
    window: and no more than so many of them
    """

    query: Tensor | None
    key: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest: tuple[int, int]
    causal: bool
    window: int | None = None


@lru_cache(maxsize=1)  # asked for the same pack when it is planned and when it is laid out
def segments(trie: Pack) -> list[Segment]:
    """The segments of `trie`, in the order of its nodes."""
    depth, end = trie.depth.tolist(), trie.end.tolist()
    starts = [
        node
        for node in range(len(depth))
        # The node before has another child where its subtree ends later; where it is no parent, a branch begins.
        if node == 0 or depth[node] != depth[node - 1] + 1 or end[node] != end[node - 1]
    ]
    found: list[Segment] = []
    above: list[int] = []  # numbers of the segments from the root to the last one
    for start, stop in zip(starts, [*starts[1:], len(depth)], strict=True):
        while above and found[above[-1]].end <= start:
            above.pop()
        found.append(Segment(start, stop, end[start], above[-1] if above else None, len(above)))
        above.append(len(found) - 1)
    return found


def levels(trie: Pack) -> int:
    """How many segments lie one below the other, at most."""
    return 1 + max(segment.level for segment in segments(trie))


def calls(trie: Pack, window: int | None = None) -> list[Call]:
    """The attention calls of `trie`, on its device."""
    parts, device = segments(trie), trie.tokens.device
    runs = [range(part.start, part.stop) for part in parts]
    if window is not None:
        seen = [[*_above(parts, number, window - 1), *runs[number]] for number in range(len(parts))]
        return [_call(None, runs, seen, device, causal=True, window=window)]
    found = [_call(None, runs, runs, device, causal=True)]
    for level in range(max(part.level for part in parts)):
        over = [part for part in parts if part.level == level and part.end > part.stop]
        below = [range(part.stop, part.end) for part in over]
        found.append(_call(below, below, [range(part.start, part.stop) for part in over], device, causal=False))
    return found


def _above(parts: Sequence[Segment], number: int, count: int) -> list[int]:
    """The last `count` nodes above a segment, from the root down; fewer where there are no more."""
    nodes: list[int] = []
    parent = parts[number].parent
    while parent is not None and len(nodes) < count:
        segment = parts[parent]
        nodes[:0] = range(max(segment.start, segment.stop - (count - len(nodes))), segment.stop)
        parent = segment.parent
    return nodes


def _call(
    query: Sequence[Sequence[int]] | None,
    queries: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    device: torch.device,
    causal: bool,
    window: int | None = None,
) -> Call:
    first, second = (
        torch.tensor([0, *map(len, each)]).cumsum(0).to(torch.int32).to(device) for each in (queries, keys)
    )
    return Call(
        None if query is None else torch.tensor(list(_flat(query)), device=device),
        torch.tensor(list(_flat(keys)), device=device),
        first,
        second,
        longest=(max(map(len, queries)), max(map(len, keys))),
        causal=causal,
        window=window,
    )


def _flat(parts: Sequence[Sequence[int]]) -> Iterator[int]:
    return (node for part in parts for node in part)
