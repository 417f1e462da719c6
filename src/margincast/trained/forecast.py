"""Margins, accuracy and loss of a run that trains every weight, or an adapter, before it is run; with intervals.

Not exact, unlike the forecast of a frozen backbone: an effective model (`laws`) whose constants come from true runs of
SmolLM2 on persona data. Where it was tested, and where it fails: docs/forecasting-full-fine-tuning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.intervals import Estimate
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, PairSet, SplitTrajectory, Trajectory
from margincast.runs.metrics import concept_rows
from margincast.trained.laws import (
    Laws,
    PilotMargins,
    Plan,
    Responses,
    effective_forecast,
    fitted,
    shared_path,
    tested_paths,
)
from margincast.trained.noise import LEVEL, Noise, drawn_accuracies, drawn_runs, interval, learned
from margincast.trained.rehearsal import Rehearsal
from margincast.trained.shape import LARGEST, Spectrum, side_by_side, token_spectra
from margincast.trained.time import learning_rates

SMALL = 0.05  # nats reached that count as none


@dataclass(frozen=True)
class Band:
    """A quantity at every recorded step: the median of drawn runs, with the central 90% of them."""

    accuracy: tuple[Estimate, ...]
    margin: tuple[Estimate, ...]


@dataclass(frozen=True)
class TrainedForecast(Trajectory):
    """A `Trajectory` that is not exact, with what it is unsure of.

    bands: of all held-out pairs ("") and of every concept
    low, high: (steps, held-out pairs) the central 90% of every margin
    draws: (draws, steps) held-out accuracy of drawn runs;  worst: (concepts,) how often each is the least accurate
    spectrum: of training pairs against held-out ones, None for responses of several tokens
    length: of the path, the sum of learning rates;  tested: the shortest and longest of the runs behind the constants
    """

    bands: Mapping[str, Band] = field(kw_only=True)
    low: Tensor = field(kw_only=True, repr=False)
    high: Tensor = field(kw_only=True, repr=False)
    draws: Tensor = field(kw_only=True, repr=False)
    worst: Mapping[str, float] = field(kw_only=True)
    spectrum: Spectrum | None = field(kw_only=True, repr=False)
    length: float = field(kw_only=True)
    tested: tuple[float, float] = field(kw_only=True)

    @property
    def beyond(self) -> bool:
        """Whether no run behind the constants was as short, or as long."""
        return not 0.999 * self.tested[0] <= self.length <= 1.001 * self.tested[1]


def forecast_trained(
    features: Features,
    recipe: Recipe,
    *,
    rehearsal: Rehearsal | None = None,
    pilot: Trajectory | None = None,
) -> TrainedForecast:
    """What training by `recipe` will do to margins, at step 0, every `eval_steps` and the last.

    features: of the untrained model;  rehearsal: of this run (`rehearse`), None forecasts from features alone
    pilot: some first steps of this run as trained, its last recorded one at most the last of the run

    Raises `InputError` for settings that a path length does not describe, for responses of several tokens without a
    rehearsal, and for a pilot of other pairs.
    """
    features.check_start()
    check_recipe(recipe)
    recipe = recipe.for_pairs(len(features.train.pairs))
    plan = plan_of(recipe, len(features.train.pairs))
    laws = fitted(rehearsal is not None)
    responses = responses_of(features, features.heldout)
    spaces = token_spaces(features, recipe.beta, torch.float64) if single_token(features) else None
    if spaces is None and rehearsal is None:
        raise InputError(
            "responses of several tokens cannot be forecast from features alone here; let the forecast rehearse "
            "(--pilot above 0)"
        )
    rehearsed = None if rehearsal is None else rehearsal.heldout.double() / recipe.beta
    pilot_margins = None if pilot is None else pilot_margins_in(pilot, features, recipe)
    spectra: tuple[Spectrum, Spectrum] | None = None
    path = torch.zeros(len(plan.lengths), len(responses.chosen), dtype=torch.float64)
    if spaces is not None:
        deep = deep_spaces(features, recipe.beta, plan.taken)
        train_spectrum, heldout_spectrum = token_spectra(deep[0].rows(plan.taken), *deep)
        spectra = train_spectrum, heldout_spectrum
        path = shared_path(spaces[0], responses, plan, laws.offset)
    heldout_shape = None if spectra is None else spectra[1]
    effective = effective_forecast(heldout_shape, path, responses, plan, laws, rehearsed, pilot_margins)
    reached = None if rehearsed is None else float(responses.part(rehearsed).rest.mean())
    noise = noise_of(laws, reached, pilot_margins, recipe.steps)
    at = torch.tensor(recipe.recorded)
    rest, shift = effective.rest[at], effective.shift[at] + start_of(recipe, features.heldout)
    drawn = intervals_of(features.heldout.pairs, rest, shift, plan.lengths[at], responses, noise, recipe.beta)
    train = SplitTrajectory(PairSet(()), torch.zeros(len(at), 0, dtype=torch.float64))
    if spaces is not None and spectra is not None:
        train = train_split(features, spaces[0], spectra, plan, laws, effective.rest, recipe)
    return TrainedForecast(
        steps=recipe.recorded,
        train=train,
        heldout=SplitTrajectory(features.heldout.pairs, recipe.beta * (rest + shift)),
        beta=recipe.beta,
        loss_type=recipe.loss if recipe.loss.parameters else recipe.loss_type,
        origin=origin_of(recipe, features, plan, rehearsal, pilot),
        spectrum=heldout_shape,
        length=sum(plan.learning_rates),
        tested=tested_paths(plan.lora),
        **vars(drawn),
    )


@dataclass(frozen=True)
class Intervals:
    """What drawn runs say of a forecast; fields as in `TrainedForecast`."""

    bands: Mapping[str, Band]
    low: Tensor
    high: Tensor
    draws: Tensor
    worst: Mapping[str, float]


def intervals_of(
    pairs: PairSet, rest: Tensor, shift: Tensor, lengths: Tensor, responses: Responses, noise: Noise, beta: float
) -> Intervals:
    """Runs that could come are drawn around the forecast, `noise` wide; of them medians, intervals and who is last.

    rest, shift: (steps, pairs) parts of the margins over beta;  lengths: (steps,) path lengths
    """
    rows = concept_rows(pairs)
    sizes = torch.tensor([len(members) for members in rows.values()])
    accuracies = drawn_accuracies(learned(rest + shift, rows.values()), sizes, lengths / lengths[-1], noise)
    quantiles = torch.tensor([0.5 - LEVEL / 2, 0.5 + LEVEL / 2], dtype=torch.float64)
    bounds: list[Tensor] = []
    groups = {**rows, "": list(range(len(pairs)))}
    margins: dict[str, list[Estimate]] = {name: [] for name in groups}
    for draws in drawn_runs(rest, shift, lengths, responses.concepts, responses.kinds, noise):
        bounds.append(torch.quantile(beta * draws, quantiles, dim=0))
        for name, members in groups.items():
            margins[name].append(interval(beta * draws[:, members].mean(1)))
    bands = {
        name: Band(tuple(map(interval, accuracies[..., place].T)), tuple(margins[name]))
        for place, name in enumerate(groups)
    }
    least = torch.nn.functional.one_hot(accuracies[:, -1, :-1].argmin(1), len(rows)).double().mean(0)
    low, high = torch.stack(bounds, dim=1)
    return Intervals(bands, low, high, accuracies[..., -1], dict(zip(rows, least.tolist(), strict=True)))


def noise_of(laws: Laws, reached: float | None, pilot_margins: PilotMargins | None, max_steps: int) -> Noise:
    """The noise of this forecast. reached: nats that the rehearsal reached"""
    noise, sizes = laws.noise, ("amplitude", "early", "concept")
    if reached is not None and laws.rehearsal is not None:
        noise = noise.times(laws.rehearsal.doubt(reached), *sizes)
    if pilot_margins is not None:  # what the pilot has shown is not to be guessed
        noise = noise.times(1.0 - pilot_margins.step / max_steps, *sizes, "accuracy", "accuracy_early")
    return noise


def check_recipe(recipe: Recipe) -> None:
    """Raises `InputError` for settings that a path length does not describe."""
    if recipe.train == "head":
        raise InputError("with train head the backbone is frozen, and the forecast exact: `forecast_frozen`")
    if not recipe.rule.path_known:
        raise InputError(
            f"forecasts of a trained backbone know adamw and adam, not {recipe.optimizer}: how far a run gets is its "
            "learning rate times its steps only where steps do not depend on the size of the gradient; the exact "
            "forecast of train head knows every optimizer"
        )


def plan_of(recipe: Recipe, pairs: int) -> Plan:
    recipe = recipe.for_pairs(pairs)
    rule, batches = recipe.rule.without_decay(), tuple(recipe.batches(pairs))
    return Plan(tuple(learning_rates(recipe)), batches, rule, recipe.loss, recipe.train == "lora")


def start_of(recipe: Recipe, split: FeatureSet) -> Tensor:
    """Where margins over beta start, (pairs,): at 0, or at the model's own log-ratios without a reference."""
    ratios = (split.reference_chosen - split.reference_rejected).double()
    return ratios if recipe.loss.reference_free else torch.zeros_like(ratios)


def rescaled(rehearsal: Rehearsal, features: Features, old: Recipe, new: Recipe) -> Rehearsal:
    """The rehearsal of `old` as one of `new` is expected to be: the runs' ends differ as features alone have it."""
    laws = fitted(rehearsed=True)
    if laws.rehearsal is None or not single_token(features):
        raise InputError("settings can be compared for responses of one token")
    law, plans = laws.rehearsal, [plan_of(each, len(features.train.pairs)) for each in (old, new)]
    alone, beside = ([plan.amplitude(each) for plan in plans] for each in (laws.amplitude, law.amplitude))
    margins = rehearsal.heldout.double() / old.beta
    reached = max(float(responses_of(features, features.heldout).part(margins).rest.mean()), SMALL)
    end = law.at(reached, beside[0]) * alone[1] / alone[0]
    needed = max(law.needed(end, beside[1]), SMALL)
    return Rehearsal(margins * (needed / reached) * new.beta, rehearsal.pairs)


def deep_spaces(features: Features, beta: float, taken: Tensor) -> tuple[TokenSpace, TokenSpace]:
    """Training and held-out pairs with what inner layers say of them for features. taken: rows that training takes

    Raises `InputError` where nobody kept that, and where it is not finite.
    """
    inner = [split.layers for split in (features.train, features.heldout) if split.layers is not None]
    if len(inner) < 2:
        raise InputError("a forecast of a trained backbone looks at inner layers: extract features with layers=True")
    if not all(bool(each.isfinite().all()) for each in inner):
        raise InputError("what inner layers say of some pairs is not finite; extract features in float32")
    train, heldout = token_spaces(features, beta)
    deep = side_by_side(inner[0][taken], *inner)
    return replace(train, features=deep[0]), replace(heldout, features=deep[1])


def single_token(features: Features) -> bool:
    return features.train.single_token and features.heldout.single_token


def responses_of(features: Features, split: FeatureSet) -> Responses:
    """Who prefers what. Responses of several tokens share no token of their own, and so no offset."""
    numbers = {name: number for number, name in enumerate(split.pairs.concepts)}
    concepts = torch.tensor([numbers[pair.concept] for pair in split.pairs])
    if not single_token(features):
        return Responses(torch.zeros_like(concepts), torch.ones_like(concepts), concepts)
    chosen, rejected = (
        torch.searchsorted(features.tokens, torch.tensor([ids[0] for ids in side]))
        for side in (split.chosen_ids, split.rejected_ids)
    )
    return Responses(chosen, rejected, concepts)


def pilot_margins_in(pilot: Trajectory, features: Features, recipe: Recipe) -> PilotMargins:
    """The last recorded step of `pilot`. Raises `InputError` where it is of other pairs, or has not begun."""
    rows = {pair.id: row for row, pair in enumerate(pilot.heldout.pairs)}
    missing = [pair.id for pair in features.heldout.pairs if pair.id not in rows]
    if missing:
        raise InputError(
            f"the pilot did not record held-out pair {missing[0]} and {len(missing) - 1} more: give the run the same "
            "data, --holdout and --seed"
        )
    steps = [step for step in pilot.steps if 0 < step <= recipe.steps]
    if not steps:
        raise InputError("the pilot has no recorded step after step 0")
    order = [rows[pair.id] for pair in features.heldout.pairs]
    margins = pilot.heldout.margins[pilot.steps.index(steps[-1])][order]
    return PilotMargins(margins.double() / pilot.beta - start_of(recipe, features.heldout), steps[-1])


def train_split(
    features: Features, train: TokenSpace, spectra: tuple[Spectrum, Spectrum], plan: Plan, laws: Laws,
    heldout: Tensor, recipe: Recipe,
) -> SplitTrajectory:  # fmt: skip
    """Training pairs, as large against held-out ones as the frozen shape has them.

    spectra: of training and of held-out pairs;  heldout: (steps + 1, pairs) forecast over beta without offsets
    """
    responses = responses_of(features, features.train)
    alpha, ridge = laws.shape.of(float(heldout[-1].mean())), laws.shape.ridge
    size = responses_of(features, features.heldout).part(spectra[1].shape(alpha, ridge)).rest.mean().abs()
    shape = responses.part(spectra[0].shape(alpha, ridge)).rest / size
    x = plan.lengths / plan.lengths[-1]
    path = shared_path(train, responses, plan, laws.offset) * laws.offset.fading(x)[:, None]
    margins = heldout.mean(1, keepdim=True) * shape + path
    margins = margins[torch.tensor(recipe.recorded)] + start_of(recipe, features.train)
    return SplitTrajectory(features.train.pairs, recipe.beta * margins)


def origin_of(
    recipe: Recipe, features: Features, plan: Plan, rehearsal: Rehearsal | None, pilot: Trajectory | None
) -> str:
    what = "a LoRA adapter" if recipe.train == "lora" else "all weights"
    pairs, read = len(features.train.pairs), min(len(plan.taken), LARGEST)
    known = ["frozen features" + (f" of {read} of {pairs} training pairs" if read < pairs else "")]
    if rehearsal is not None:
        known.append(f"a rehearsal that saw {rehearsal.pairs} pairs")
    if pilot is not None:
        known.append(f"a pilot of {max(step for step in pilot.steps if step <= recipe.steps)} steps")
    return f"forecast of training {what}, from {', '.join(known[:-1]) + ' and ' if known[1:] else ''}{known[-1]}"
