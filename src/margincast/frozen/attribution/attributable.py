"""What does a forecast know that knows its run? What each training pair contributed to a margin: the same calls for
responses of one token and of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from margincast.errors import InputError
from margincast.frozen.attribution.of_pair import PairAttribution
from margincast.frozen.attribution.targets import Sums, Target, target_of
from margincast.recipe.recipe import Recipe
from margincast.records import Trajectory


@dataclass(frozen=True)
class Attributable(Trajectory):
    """A `Trajectory` that knows the run it comes from: its recipe, and the dtype that it was calculated in."""

    recipe: Recipe = field(kw_only=True)
    dtype: torch.dtype = field(default=torch.float64, kw_only=True)

    def attribution(
        self,
        pair: int | str | None = None,
        *,
        concept: str | None = None,
        split: str = "heldout",
        step: int | None = None,
    ) -> PairAttribution:
        """The margin of one pair after `step` steps as a sum of one signed contribution per training pair; without
        `pair` the mean margin of the pairs of `concept`, or of the whole split.

        pair: index into the split, or the pair's id;  split: "heldout" or "train";  step: a recorded one, or the last

        What each optimizer's contributions mean is said in `frozen.attribution.contributions`, for responses of many
        tokens in `frozen.tokens.attribution`, where a call costs about three runs: `attributions` takes many targets.

        Raises `InputError` for a pair, a concept or a step that is not there, and for an optimizer of which it is not
        known what a pair adds.
        """
        return self.attributions([self.target(pair, concept=concept, split=split)], step=step)[0]

    def target(self, pair: int | str | None = None, *, concept: str | None = None, split: str = "heldout") -> Target:
        """What `attributions` takes, by the arguments of `attribution`."""
        return target_of({"train": self.train.pairs, "heldout": self.heldout.pairs}, pair, concept, split)

    def attributions(self, targets: Sequence[Target], *, step: int | None = None) -> tuple[PairAttribution, ...]:
        """`attribution` of each of `targets`: of many tokens, they cost little more together than one does.

        Raises what `attribution` raises.
        """
        step = self.recorded(step)
        sums, at = self.sums(targets, step), self.steps.index(step)
        margins = {"train": self.train.margins[at], "heldout": self.heldout.margins[at]}
        return tuple(
            PairAttribution(
                id=target.id,
                split=target.split,
                step=step,
                pairs=self.train.pairs,
                values=values,
                start=float(start),
                margin=float(margins[target.split][target.rows].double().mean()),
            )
            for target, values, start in zip(targets, sums.values, sums.start, strict=True)
        )

    def sums(self, targets: Sequence[Target], step: int) -> Sums:
        """The numbers of `attributions`."""
        raise InputError(f"a {type(self).__name__} does not know what its pairs contributed")

    def recorded(self, step: int | None) -> int:
        """`step`, or the last one. Raises `InputError` for a step that was not recorded."""
        if step is not None and step not in self.steps:
            raise InputError(f"step {step} was not recorded; use one of {', '.join(map(str, self.steps))}")
        return self.steps[-1] if step is None else step
