"""Where in its responses does a pair win or lose, and how much of that is length? Rewards by token, turn and length.

The margin is a sum over tokens, so its first k tokens have a share in it, and so has each turn. A reward that is linear
in the number of tokens with slope s gives a pair s x (its length difference) for its lengths alone: what is left of the
margin without that is length-controlled.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from margincast.features.positions import TokenFeatures
from margincast.frozen.tokens.pushes import SIDES
from margincast.intervals import Slope, clustered_slope
from margincast.records import PairSet
from margincast.results import Json, Result

CARRIED = (0.5, 0.7, 0.9)  # shares of a margin, whose first tokens are counted
Side = Literal["chosen", "rejected"]


@dataclass(frozen=True)
class Turn:
    """The rewards of message `number`, from 0, of a pair's responses; a side that has no such message adds 0."""

    number: int
    role: str
    chosen: float
    rejected: float


@dataclass(frozen=True, repr=False)
class SplitProfile:
    """The rewards of one split's responses, token by token.

    rewards: (P,) float64, of every response position;  response, turn: (P,) as of `TokenFeatures`
    """

    pairs: PairSet
    rewards: Tensor
    response: Tensor
    turn: Tensor | None

    @cached_property
    def lengths(self) -> Tensor:
        """(pairs, 2) tokens of the chosen and the rejected response."""
        return torch.bincount(self.response, minlength=2 * len(self.pairs)).view(-1, 2)

    @cached_property
    def by_response(self) -> Tensor:
        """(pairs, 2) rewards of both responses: sums over their tokens."""
        sums = self.rewards.new_zeros(2 * len(self.pairs)).index_add_(0, self.response, self.rewards)
        return sums.view(-1, 2)

    @property
    def margins(self) -> Tensor:
        """(pairs,)"""
        return self.by_response[:, 0] - self.by_response[:, 1]

    def slope(self, side: Side | None = None) -> Slope:
        """Of the reward in the response's length, within the sides: over all responses, or those of one side.

        The standard error is clustered by pair: both responses of a pair count as one draw.
        """
        columns = slice(None) if side is None else [SIDES.index(side)]
        return clustered_slope(self.lengths[:, columns].double(), self.by_response[:, columns])

    @cached_property
    def length_controlled(self) -> Tensor:
        """(pairs,) margins less the slope over all responses times the pair's length difference."""
        difference = (self.lengths[:, 0] - self.lengths[:, 1]).double()
        if not bool(difference.any()):
            return self.margins
        return self.margins - self.slope().value * difference

    @property
    def won_by_length(self) -> Tensor:
        """(pairs,) whether the margin is above 0 and the length-controlled one is not."""
        return (self.margins > 0) & (self.length_controlled <= 0)

    @cached_property
    def shares(self) -> Tensor:
        """(pairs, longest response) of the margin that the first 1, 2, ... tokens of both responses carry.

        May pass 1 or lie below 0 on the way; not numbers where the margin is 0.
        """
        counts = self.lengths.flatten()
        place = torch.arange(len(self.response)) - (counts.cumsum(0) - counts)[self.response]
        signed = self.rewards * (1 - 2 * (self.response % 2))
        longest = int(counts.max()) if len(counts) else 0
        grid = signed.new_zeros(len(self.pairs), longest)
        grid.index_put_((self.response // 2, place), signed, accumulate=True)
        carried = grid.cumsum(1)
        return carried / carried[:, -1:]

    def tokens_for(self, share: float) -> Tensor:
        """(pairs,) how many first tokens of both responses carry `share` of the margin; 0 where the margin is 0."""
        reached = self.shares >= share
        return torch.where(reached.any(1), reached.double().argmax(1) + 1, 0)

    def turns(self, pair: int) -> tuple[Turn, ...]:
        """The messages of the responses of the pair at index `pair`."""
        mine = self.response // 2 == pair
        turn = self.response[mine] * 0 if self.turn is None else self.turn[mine]
        count = int(turn.max()) + 1
        sums = self.rewards.new_zeros(2 * count).index_add_(0, 2 * turn + self.response[mine] % 2, self.rewards[mine])
        sides = [side for side in (self.pairs[pair].chosen, self.pairs[pair].rejected) if not isinstance(side, str)]
        longer = max(sides, key=len, default=())
        return tuple(
            Turn(number, longer[number]["role"] if longer else "assistant", chosen, rejected)
            for number, (chosen, rejected) in enumerate(sums.view(-1, 2).tolist())
        )


@dataclass(frozen=True, repr=False)
class RewardProfile(Result):
    """Rewards of every response after `step` steps by token and turn, and what they owe to length."""

    presenter: ClassVar[str] = "reward_profile"

    train: SplitProfile
    heldout: SplitProfile
    origin: str
    step: int

    def __repr__(self) -> str:
        slope = self.heldout.slope()
        return f"RewardProfile(step {self.step}: held-out slope {slope.value:.3g} +- {slope.error:.2g} a token)"

    def rows(self) -> list[Json]:
        """The rows of `length.jsonl`, training pairs first. `tokens_for_70` and the like are None where the margin is
        0, `turns` where no response of the split has more than one."""
        return [row for name, split in (("train", self.train), ("heldout", self.heldout)) for row in _rows(name, split)]


def profile_of(
    positions: tuple[TokenFeatures, TokenFeatures],
    pairs: tuple[PairSet, PairSet],
    rewards: tuple[Tensor, ...],
    origin: str,
    step: int,
) -> RewardProfile:
    """rewards: (P,) of the training and of the held-out positions."""
    splits = [
        SplitProfile(mine, values.double(), features.response, features.turn)
        for features, mine, values in zip(positions, pairs, rewards, strict=True)
    ]
    return RewardProfile(splits[0], splits[1], origin, step)


def _rows(name: str, split: SplitProfile) -> list[Json]:
    counts = {f"tokens_for_{share:.0%}".rstrip("%"): split.tokens_for(share).tolist() for share in CARRIED}
    margins, controlled = split.margins.tolist(), split.length_controlled.tolist()
    known = split.length_controlled.isfinite().tolist()
    won, lengths, rewards = split.won_by_length.tolist(), split.lengths.tolist(), split.by_response.tolist()
    return [
        {
            "id": pair.id,
            "split": name,
            "concept": pair.concept,
            "margin": margins[k],
            "length_controlled_margin": controlled[k],
            "won_by_length": won[k] if known[k] else None,
            "tokens_chosen": lengths[k][0],
            "tokens_rejected": lengths[k][1],
            "reward_chosen": rewards[k][0],
            "reward_rejected": rewards[k][1],
            **{key: values[k] or None for key, values in counts.items()},
            "turns": None if split.turn is None else [asdict(turn) for turn in split.turns(k)],
        }
        for k, pair in enumerate(split.pairs)
    ]
