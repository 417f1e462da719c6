"""How does one simulation use several processes or machines? Each holds some rows of the features.

Every process computes its rows' part of the gradient; one all-reduce of T x d numbers per step gives all of them the
same sum, and each takes the same optimizer step. Under `torchrun` or `accelerate launch`, after
`torch.distributed.init_process_group`:

    space = shard(TokenSpace(map_features(path), chosen, rejected, beta, tokens))
    states = simulate(space, AdamW(1e-5), full_batch(len(space), 60), unembedding=rows_of_W0)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch.distributed as dist
from torch import Tensor

from margincast.errors import InputError, StatedFailure
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss


@dataclass(frozen=True)
class ShardedSpace:
    """Rows start .. start + len(local) of `pairs` pairs, the rest being with the other processes of `group`."""

    local: TokenSpace
    start: int
    pairs: int
    group: dist.ProcessGroup | None = None

    def __len__(self) -> int:
        return self.pairs

    def check(self) -> None:
        """Raises the same `InputError` on every process when one of them has features that cannot be used."""
        reason = "" if self.pairs else "there is no pair to train on"
        try:
            if len(self.local):
                self.local.check()
        except InputError as error:
            reason = f"process {dist.get_rank(self.group)}, rows from {self.start}: {error}"
        everyone: list[str] = [""] * dist.get_world_size(self.group)
        try:
            dist.all_gather_object(everyone, reason, group=self.group)
        except RuntimeError as error:
            raise _lost(error) from error
        if any(everyone):
            raise InputError(next(filter(None, everyone)))

    def zeros(self) -> Tensor:
        return self.local.zeros()

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor:
        """As `TokenSpace.gradient` over all processes; each passes the same batch of indices into all pairs."""
        mine, rows = _within(batch.rows, self.start, len(self.local))
        part = self.local.gradient(state, loss, Batch(rows, batch.weights[mine]))
        return self._sum(part)

    def norm(self, gradient: Tensor) -> Tensor:
        return self.local.norm(gradient)

    def margins(self, state: Tensor) -> Tensor:
        """Margins of all pairs, (pairs,), on every process."""
        margins = state.new_zeros(self.pairs)
        margins[self.start : self.start + len(self.local)] = self.local.margins(state)
        return self._sum(margins)

    def _sum(self, part: Tensor) -> Tensor:
        try:
            dist.all_reduce(part, group=self.group)
        except RuntimeError as error:
            raise _lost(error) from error
        return part


def shard(space: TokenSpace, group: dist.ProcessGroup | None = None) -> ShardedSpace:
    """This process's share of `space`: consecutive rows, of a mapped file the only ones that are ever read."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    start, stop = rank * len(space) // world, (rank + 1) * len(space) // world
    part = slice(start, stop)
    local = TokenSpace(space.features[part], space.chosen[part], space.rejected[part], space.beta, space.tokens)
    return ShardedSpace(local, start, len(space), group)


# A full batch asks with the same tensor at every step; tensors are told apart by identity.
@lru_cache(maxsize=4)
def _within(rows: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Positions in `rows` of the rows that are here, and where they are here."""
    mine = ((rows >= start) & (rows < start + count)).nonzero().squeeze(1)
    return mine, rows[mine] - start


def _lost(error: RuntimeError) -> StatedFailure:
    reason = str(error).splitlines()[0]
    return StatedFailure(f"another process of this run stopped, so it cannot go on; start it again ({reason})")
