"""Which part of the pairs to train on? Every rule's part is a run, and the forecast of that run is the rule's worth.

found = select(features, Recipe(train="head", learning_rate=1e-4), keep=0.5)
print(*found.advice, sep="\\n")
found.save("selected")  # the pairs to train on, a value for every pair, a report
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.features.positions import Positions
from margincast.forecasting import forecast
from margincast.frozen.attribution.targets import Target, target_of
from margincast.frozen.forecast import Forecast
from margincast.frozen.tokens.forecast import TokenForecast
from margincast.intervals import Estimate
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet
from margincast.results import Result
from margincast.selection.advice import advice_of
from margincast.selection.budget import Budget, budget_of
from margincast.selection.evidence import Evidence, draw_of
from margincast.selection.judging import Judge, Worth, best_of, choosing_noise, differences
from margincast.selection.rules import Rule, rule_of, rules
from margincast.splitting import heldout_ids

YARDSTICK, ALL = "random", "all"
DRAWS = 5  # random parts, whose spread is the noise of choosing


@dataclass(frozen=True)
class Choice:
    """What a rule keeps, and what that is worth; of random parts the first is kept, and the worth is their mean.

    value: (N,) float64 of the training pairs;  rows: (keep,) which of them are kept, ascending
    margins: (parts, held-out pairs) float64 after the last step of the run on them, one part but for `random`
    worth: of the judging pairs;  concepts: the same of those of each concept
    over_random, over_all: of the accuracy, less that of random parts and of all pairs, simultaneous over rules
    """

    meaning: str
    value: Tensor
    rows: Tensor
    margins: Tensor
    worth: Worth
    concepts: dict[str, Worth]
    over_random: Estimate
    over_all: Estimate


@dataclass(frozen=True, repr=False)
class Selection(Result):
    """Rules side by side, and the pairs that are to be trained on: those of the rule `picked`.

    size: how many of `train_pairs` are kept;  steps: of every run;  target: the concept that is to be good at, or "all"
    judges: (J,) rows of the held-out pairs that judge: none that a rule has looked at
    whole: the worth of a run on all pairs;  left_out: rules that cannot tell these pairs apart
    advice: what follows, a sentence each;  budget: what more pairs are worth, where that was asked for
    """

    presenter: ClassVar[str] = "selection"

    train_pairs: PairSet
    heldout_pairs: PairSet
    size: int
    steps: int
    target: str
    judges: Tensor
    whole: Worth
    rules: dict[str, Choice]
    picked: str
    left_out: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    budget: Budget | None = None

    def __repr__(self) -> str:
        return f"Selection({self.size} of {len(self.train_pairs)} pairs by {self.picked}, of {len(self.rules)} rules)"

    @property
    def chosen(self) -> PairSet:
        """The pairs to train on, in their order."""
        return PairSet(tuple(self.train_pairs.pairs[row] for row in self.rules[self.picked].rows.tolist()))


def count_of(keep: float | int, pairs: int) -> int:
    """How many of `pairs` a share (0 to 1, as a float) or a number (as an int) is. Raises `InputError` for none, and
    for more than there are."""
    share = isinstance(keep, float)
    if isinstance(keep, bool) or not np.isfinite(keep):
        raise InputError(f"keep must be a number of pairs or a share of them, got {keep!r}")
    if share and not 0.0 < keep <= 1.0:
        raise InputError(
            f"keep {keep:g}: a share lies above 0 and is at most 1.0; give a whole number for so many pairs"
        )
    count = round(keep * pairs) if share else int(keep)
    if count < 1:
        raise InputError(f"keep {keep:g}: of {pairs} training pairs that is none; keep at least 1")
    if count > pairs:
        raise InputError(f"keep {count}: there are {pairs} training pairs to choose from; keep at most so many")
    return count


def select(
    features: Features | Positions,
    recipe: Recipe | None = None,
    *,
    keep: float | int = 0.5,
    rules: Sequence[str] | None = None,
    target: str = ALL,
    curve: bool = False,
    draws: int = DRAWS,
    say: Callable[[str], None] | None = None,
) -> Selection:
    """Choose `keep` of the training pairs by each rule, forecast the run on each part, and say which to train on.

    recipe: of the runs, with train "head": forecasts are exact for it. Every run takes as many steps as the recipe
    says, or, with num_train_epochs, as its number of pairs asks for
    keep: a share of the training pairs as a float, or a number of them as an int
    rules: by name, `a+b` for the mean rank of two; None: all that tell the pairs apart. Where one is named, its part is
    picked whatever the forecast says; of several the best is, where it is beyond noise, else a random one
    target: a held-out concept that is to be good at, or "all"
    curve: also what 1/8, 1/4 and 1/2 of the pairs give by each rule, and half of each concept: some four times as long
    draws: random parts, at least 2;  say: takes lines of progress

    A rule that looks at held-out pairs sees half of them, and then all rules are judged on the other half. Ties go by a
    draw from the recipe's seed and the pairs' ids. Time and memory are linear in the pairs.

    Raises `InputError` for a `keep`, rule or target that there is not, too few held-out pairs, and what `forecast`
    raises.
    """
    recipe = Recipe(train="head") if recipe is None else recipe
    if recipe.train != "head":
        raise InputError(f"parts are judged by exact forecasts: give a recipe with train 'head', not {recipe.train!r}")
    if draws < 2:
        raise InputError(f"draws must be at least 2, got {draws}: their spread is the noise of choosing")
    count, wanted = count_of(keep, len(features.train_pairs)), _wanted(rules)
    looks = any(rule.looks for rule in wanted.values())
    seen, judges = _sides(features.heldout_pairs, target, recipe.seed, looks)
    runs = _Runs(features, recipe, say or (lambda _: None))
    evidence = Evidence(runs.whole(), seen, draw_of(features.train_pairs, recipe.seed), recipe.seed)
    values, left_out = _values(evidence, wanted, named=rules is not None)
    by_draw = {name: [value] for name, value in values.items()}
    # Parts by other seeds are the yardstick's alone: the other rules choose the same whatever the draw.
    by_draw[YARDSTICK] += [draw_of(features.train_pairs, recipe.seed + k) for k in range(1, draws)]
    judge, whole = Judge(features.heldout_pairs, judges, recipe.seed), evidence.whole.heldout.margins[-1].double()
    choices = _choices(judge, wanted, by_draw, evidence.draw, count, runs, whole)
    found = Selection(
        train_pairs=features.train_pairs,
        heldout_pairs=features.heldout_pairs,
        size=count,
        steps=evidence.whole.steps[-1],
        target=target,
        judges=judges,
        whole=judge.worth(whole[None]),
        rules=choices,
        picked=_picked(choices, list(rules or ())),
        left_out=left_out,
        budget=budget_of(runs.end, kept, by_draw, features.train_pairs, judge, whole) if curve else None,
    )
    return replace(found, advice=advice_of(found, YARDSTICK))


def kept(value: Tensor, draw: Tensor, count: int) -> Tensor:
    """The rows of the `count` largest values, ascending; of equal ones those with the larger draw."""
    order = np.lexsort((-draw.numpy(), -value.numpy()))
    return torch.from_numpy(np.sort(order[:count]).astype(np.int64))


def _wanted(names: Sequence[str] | None) -> dict[str, Rule]:
    """The rules of these names in the order of tables, and the yardstick before them."""
    if names is not None and len(set(names)) < len(names):
        raise InputError(f"a rule is named twice: {', '.join(names)}")
    if names is None:
        return rules()
    named = {name: rule_of(name) for name in names}
    return {YARDSTICK: rule_of(YARDSTICK), **dict(sorted(named.items(), key=lambda item: item[1].rank))}


def _sides(heldout: PairSet, target: str, seed: int, looks: bool) -> tuple[Target, Tensor]:
    """The held-out pairs that rules may look at, and the rows of those that judge: others, where a rule looks."""
    whole = target_of({"heldout": heldout}, concept=None if target == ALL else target)
    if not looks:
        return whole, whole.rows
    pairs = [replace(heldout.pairs[row], split=None) for row in whole.rows.tolist()]
    # By prompts, like the split itself: a prompt on both sides would judge what it has chosen.
    judging = heldout_ids(pairs, 0.5, seed)
    mine = torch.tensor([pair.id in judging for pair in pairs])
    if not bool(mine.any()) or bool(mine.all()):
        raise InputError(
            f"a rule that looks at held-out pairs needs at least 2 of them, with different prompts; {whole.id} has "
            f"{len(pairs)}: hold out more, or leave the influence rules out"
        )
    return Target(whole.id, "heldout", whole.rows[~mine]), whole.rows[mine]


def _values(evidence: Evidence, wanted: dict[str, Rule], named: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The value of every pair by every rule, without rules that give all pairs the same, whose names come second.

    Raises `InputError` for such a rule that was named, and for a value that is no number."""
    found, left_out = {}, []
    for name, rule in wanted.items():
        value = rule.value(evidence).double().cpu()
        if value.shape != evidence.draw.shape or not bool(value.isfinite().all()):
            raise InputError(f"rule {name!r} must give every training pair a finite value; it gives {value.shape}")
        if bool((value == value[0]).all()) and name != YARDSTICK:
            if named:
                raise InputError(f"rule {name!r} gives all pairs the same value, and cannot choose among them")
            left_out.append(name)
            continue
        found[name] = value
    return found, tuple(left_out)


def _picked(choices: dict[str, Choice], named: list[str]) -> str:
    if len(named) == 1:
        return named[0]
    others = {name: choice for name, choice in choices.items() if name != YARDSTICK}
    if not others:
        return YARDSTICK
    accuracies, margins = zip(*((c.worth.accuracy.value, c.worth.margin.value) for c in others.values()), strict=True)
    best = best_of(list(others), accuracies, margins)
    return best if others[best].over_random.low > 0 else YARDSTICK


@dataclass(frozen=True)
class _Runs:
    """Forecasts of runs on parts of the training pairs."""

    features: Features | Positions
    recipe: Recipe
    say: Callable[[str], None]

    def whole(self) -> Forecast | TokenForecast:
        return self._forecast(self.features)

    def end(self, rows: Tensor) -> Tensor:
        """Margins of all held-out pairs after the last step of the run on the training pairs at `rows`, (M,)."""
        if len(rows) == len(self.features.train_pairs):
            self.say(f"forecast of all {len(rows)} pairs")
        else:
            self.say(f"forecast of {len(rows)} pairs")
        pairs = PairSet(tuple(self.features.train_pairs.pairs[row] for row in rows.tolist()))
        part = self.features.redrawn(pairs, rows, torch.zeros(len(rows), dtype=torch.bool))
        return self._forecast(part).heldout.margins[-1].double()

    def _forecast(self, features: Features | Positions) -> Forecast | TokenForecast:
        recipe = self.recipe.for_pairs(len(features.train_pairs))
        found = forecast(features, replace(recipe, eval_steps=recipe.steps))  # the last step is all that is asked
        assert isinstance(found, Forecast | TokenForecast)  # of train head
        return found


def _choices(
    judge: Judge,
    wanted: dict[str, Rule],
    values: dict[str, list[Tensor]],
    draw: Tensor,
    count: int,
    runs: _Runs,
    whole: Tensor,
) -> dict[str, Choice]:
    """values: by rule, of random parts one for each;  whole: (M,) margins of the run on all pairs"""
    parts = {name: [kept(value, draw, count) for value in each] for name, each in values.items()}
    margins = {name: torch.stack([runs.end(rows) for rows in each]) for name, each in parts.items()}
    random = judge.right(margins[YARDSTICK])
    noise, right = choosing_noise(random), np.stack([judge.right(each).mean(axis=0) for each in margins.values()])
    over_random = differences(right, random.mean(axis=0), noise, judge.resamples)
    over_all = differences(right, judge.right(whole[None])[0], noise, judge.resamples)
    return {
        name: Choice(
            meaning=wanted[name].meaning,
            value=values[name][0],
            rows=parts[name][0],
            margins=each,
            worth=judge.worth(each),
            concepts=judge.concepts(each),
            over_random=random_gap,
            over_all=all_gap,
        )
        for (name, each), random_gap, all_gap in zip(margins.items(), over_random, over_all, strict=True)
    }
