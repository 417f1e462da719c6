"""Margins, accuracy and loss of a run that trains every weight, or an adapter, before it is run; with intervals.

Not exact, unlike the forecast of a frozen backbone: an effective model (`laws`) whose constants come from true runs of
SmolLM2 on persona data. Where it was tested, and where it fails: docs/forecasting-full-fine-tuning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.intervals import Estimate
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet, SplitTrajectory, Trajectory
from margincast.runs.metrics import concept_rows
from margincast.trained.calibration import Given, calibration_of, package_calibration
from margincast.trained.constants import Constants, package_constants
from margincast.trained.inputs import (
    Begun,
    begun_of,
    check_lengths,
    check_recipe,
    deep_spaces,
    pilot_margins_in,
    plan_of,
    responses_of,
    single_token,
    start_of,
)
from margincast.trained.laws import EffectiveForecast, Laws, PilotMargins, Plan, effective_forecast, shared_path
from margincast.trained.noise import COVERAGE, Noise, accuracies_of, drawn_accuracies, drawn_runs, interval
from margincast.trained.offset import Kinds
from margincast.trained.rehearsal import Rehearsal
from margincast.trained.sequences import SEQUENCES_FITTED_ON, kinds_of_sequences, sequence_forecast, sequence_law
from margincast.trained.shape import KERNEL_PAIRS, Spectrum, token_spectra
from margincast.trained.validity import Validity, validity_of, widened

SMALL = 0.05  # nats reached that count as none


@dataclass(frozen=True)
class Band:
    """A quantity at every recorded step: the median of drawn runs, with the central 90% of them."""

    accuracy: tuple[Estimate, ...]
    margin: tuple[Estimate, ...]


@dataclass(frozen=True)
class TrainedForecast(Trajectory):
    """A `Trajectory` that is not exact, with intervals that hold 90% of runs.

    bands: of all held-out pairs ("") and of every concept
    low, high: (steps, held-out pairs) the central 90% of every margin
    draws: (draws, steps) held-out accuracy of drawn runs;  worst: (concepts,) how often each is the least accurate
    spectrum: of training pairs against held-out ones, None for responses of several tokens
    length: of the path, the sum of learning rates;  tested: the shortest and longest of the runs behind the constants
    constants: of the forecast, before they are widened;  validity: how near it is to their runs
    order: of responses of many tokens from features alone, the rank correlation of margins
    with those of runs that it was tested on
    begun: where margins start, of a model with a trained adapter
    """

    bands: Mapping[str, Band] = field(kw_only=True)
    low: Tensor = field(kw_only=True, repr=False)
    high: Tensor = field(kw_only=True, repr=False)
    draws: Tensor = field(kw_only=True, repr=False)
    worst: Mapping[str, float] = field(kw_only=True)
    spectrum: Spectrum | None = field(kw_only=True, repr=False)
    length: float = field(kw_only=True)
    tested: tuple[float, float] = field(kw_only=True)
    constants: Constants = field(kw_only=True, repr=False)
    validity: Validity = field(kw_only=True, repr=False)
    order: float | None = field(kw_only=True, default=None)
    begun: Begun | None = field(kw_only=True, default=None)

    @property
    def beyond(self) -> bool:
        """Whether no run behind the constants was as short, or as long."""
        return not 0.999 * self.tested[0] <= self.length <= 1.001 * self.tested[1]

    @property
    def interval_tensors(self) -> dict[str, Tensor]:
        """Its intervals as `intervals.safetensors` keeps them.

        heldout_low, heldout_high: (steps, pairs);  band_margin, band_accuracy: (1 + concepts, steps, 3) value, low and
        high, of all held-out pairs first and then of every concept, in the order of `heldout.pairs.concepts`
        """
        bands = [self.bands[group] for group in ("", *self.heldout.pairs.concepts)]

        def stacked(metric: str) -> Tensor:
            rows = [[(one.value, one.low, one.high) for one in getattr(band, metric)] for band in bands]
            return torch.tensor(rows, dtype=torch.float64)

        return {
            "heldout_low": self.low,
            "heldout_high": self.high,
            "band_margin": stacked("margin"),
            "band_accuracy": stacked("accuracy"),
        }


def forecast_trained(
    features: Features,
    recipe: Recipe,
    *,
    rehearsal: Rehearsal | None = None,
    pilot: Trajectory | None = None,
    calibration: Given = None,
    cache_dir: Path | None = None,
) -> TrainedForecast:
    """What training by `recipe` will do to margins, at step 0, every `eval_steps` and the last.

    features: of the untrained model, whose margins start at its log-ratios where it comes with a trained adapter
    rehearsal: of this run (`rehearse`), None forecasts from features alone
    pilot: some first steps of this run as trained, its last recorded one at most the last of the run
    calibration: from `calibrate`, or constants from `fit_constants`, or the file of either; None: the nearest there is,
    of those in `cache_dir` and that of the package. Far from its runs intervals are twice as wide (`validity`)

    Raises `InputError` for settings that a path length does not describe, a pilot of other pairs, constants that are
    none, or that know no such run, and for an adapter or other constants than the package's where responses have
    several tokens and there is no rehearsal.
    """
    check_recipe(recipe)
    check_lengths(features, recipe)
    recipe = recipe.for_pairs(len(features.train.pairs))
    plan = plan_of(recipe, len(features.train.pairs))
    if calibration is None and rehearsal is None and not single_token(features):
        calibration = package_calibration()  # no other is of responses of many tokens
    nearest = calibration_of(calibration, features.model_hash, features.kind, cache_dir)
    validity = validity_of(nearest, features, recipe, sum(plan.learning_rates))
    known = nearest.constants
    if rehearsal is None and not single_token(features):
        return _of_sequences(features, recipe, plan, validity, pilot)
    tested = known.tested(plan.lora)
    laws = widened(known, validity).laws(rehearsal is not None)
    responses = responses_of(features, features.heldout)
    spaces = token_spaces(features, recipe, torch.float64) if single_token(features) else None
    rehearsal_margins = None if rehearsal is None else rehearsal.heldout.double() / recipe.beta
    pilot_margins = None if pilot is None else pilot_margins_in(pilot, features, recipe)
    spectra: tuple[Spectrum, Spectrum] | None = None
    path = torch.zeros(len(plan.lengths), len(responses.chosen), dtype=torch.float64)
    if spaces is not None:
        spectra = spectra_of(features, recipe, plan)
        path = shared_path(spaces[0], responses, plan, laws.offset)
    heldout_shape = None if spectra is None else spectra[1]
    effective = effective_forecast(heldout_shape, path, responses, plan, laws, rehearsal_margins, pilot_margins)
    reached = None if rehearsal_margins is None else float(responses.part(rehearsal_margins).rest.mean())
    noise = noise_of(laws, reached, pilot_margins, recipe.steps)
    origin = origin_of(recipe, features, plan, rehearsal, pilot)
    made = _with_intervals(features, recipe, plan, effective, responses.kinds, noise, origin, tested, known, validity)
    if spaces is None or spectra is None:
        return made
    train = train_split(features, spaces[0], spectra, plan, laws, effective.rest, recipe)
    return replace(made, train=train, spectrum=heldout_shape)


def _of_sequences(
    features: Features, recipe: Recipe, plan: Plan, validity: Validity, pilot: Trajectory | None
) -> TrainedForecast:
    """`forecast_trained` of responses of many tokens, from features alone.

    Raises `InputError` for an adapter, and for constants that are not the package's.
    """
    known = validity.calibration.constants
    if plan.lora or known != package_constants():
        raise InputError(
            "responses of many tokens are forecast from features alone for runs of all weights, with the constants of "
            "the package; let the forecast rehearse (--pilot above 0)"
        )
    law, responses = sequence_law(), responses_of(features, features.heldout)
    train, heldout = deep_spaces(features, recipe, plan.taken)
    (spectrum,) = token_spectra(train.rows(plan.taken), heldout, centre=False)
    pilot_margins = None if pilot is None else pilot_margins_in(pilot, features, recipe)
    effective, noise = sequence_forecast(spectrum, responses, plan, known.from_features, law, pilot_margins)
    kinds = kinds_of_sequences(responses.concepts)
    origin, tested = origin_of(recipe, features, plan, None, pilot), (law.shortest, law.longest)
    known = replace(known, fitted_on=SEQUENCES_FITTED_ON)
    made = _with_intervals(features, recipe, plan, effective, kinds, noise, origin, tested, known, validity)
    return replace(made, order=law.rank)


def _with_intervals(
    features: Features, recipe: Recipe, plan: Plan, effective: EffectiveForecast, kinds: Kinds, noise: Noise,
    origin: str, tested: tuple[float, float], constants: Constants, validity: Validity,
) -> TrainedForecast:  # fmt: skip
    """The record of `effective`, with what runs do around it. Without training pairs."""
    concepts = responses_of(features, features.heldout).concepts
    at = torch.tensor(recipe.recorded)
    rest, shift = effective.rest[at], effective.shift[at] + start_of(recipe, features.heldout)
    drawn = intervals_of(
        features.heldout.pairs, rest, shift, plan.lengths[at], concepts, kinds, noise, recipe.beta
    )  # fmt: skip
    return TrainedForecast(
        steps=recipe.recorded,
        train=SplitTrajectory(PairSet(()), torch.zeros(len(at), 0, dtype=torch.float64)),
        heldout=SplitTrajectory(features.heldout.pairs, recipe.beta * (rest + shift)),
        beta=recipe.beta,
        loss_type=recipe.loss if recipe.loss.parameters else recipe.loss_type,
        origin=origin,
        spectrum=None,
        length=sum(plan.learning_rates),
        tested=tested,
        constants=constants,
        begun=begun_of(features, recipe),
        validity=validity,
        **vars(drawn),
    )


def spectra_of(features: Features, recipe: Recipe, plan: Plan) -> tuple[Spectrum, Spectrum]:
    """The spectra of the training pairs that training takes, against all training pairs and against held-out ones."""
    train, heldout = deep_spaces(features, recipe, plan.taken)
    of_train, of_heldout = token_spectra(train.rows(plan.taken), train, heldout)
    return of_train, of_heldout


@dataclass(frozen=True)
class Intervals:
    """Intervals and draws of a forecast; fields as in `TrainedForecast`."""

    bands: Mapping[str, Band]
    low: Tensor
    high: Tensor
    draws: Tensor
    worst: Mapping[str, float]


def intervals_of(
    pairs: PairSet, rest: Tensor, shift: Tensor, lengths: Tensor, concepts: Tensor, kinds: Kinds, noise: Noise,
    beta: float,
) -> Intervals:  # fmt: skip
    """Medians, intervals and least accurate concepts of runs that are drawn around the forecast, `noise` wide.

    rest, shift: (steps, pairs) parts of the margins over beta;  lengths: (steps,) path lengths
    concepts, kinds: as of `drawn_runs`
    """
    rows = concept_rows(pairs)
    sizes = torch.tensor([len(members) for members in rows.values()])
    accuracies = drawn_accuracies(accuracies_of(rest + shift, rows.values()), sizes, lengths / lengths[-1], noise)
    quantiles = torch.tensor([0.5 - COVERAGE / 2, 0.5 + COVERAGE / 2], dtype=torch.float64)
    bounds: list[Tensor] = []
    groups = {**rows, "": list(range(len(pairs)))}
    margins: dict[str, list[Estimate]] = {name: [] for name in groups}
    for draws in drawn_runs(rest, shift, lengths, concepts, kinds, noise):
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
    noise, sizes = laws.noise, ("amplitude", "amplitude_early", "concept")
    if reached is not None and laws.rehearsal is not None:
        noise = noise.times(laws.rehearsal.doubt(reached), *sizes)
    if pilot_margins is not None:  # what the pilot recorded is no longer unknown
        noise = noise.times(1.0 - pilot_margins.step / max_steps, *sizes, "accuracy", "accuracy_early")
    return noise


def rescaled(rehearsal: Rehearsal, features: Features, old: Recipe, new: Recipe, constants: Constants) -> Rehearsal:
    """The rehearsal of `old` as one of `new` is expected to be: the runs' ends differ as features alone have it."""
    laws = constants.laws(with_rehearsal=True)
    if laws.rehearsal is None or not single_token(features):
        raise InputError("settings can be compared for responses of one token")
    law, plans = laws.rehearsal, [plan_of(each, len(features.train.pairs)) for each in (old, new)]
    alone, beside = ([plan.amplitude(each) for plan in plans] for each in (laws.amplitude, law.amplitude))
    margins = rehearsal.heldout.double() / old.beta
    reached = max(float(responses_of(features, features.heldout).part(margins).rest.mean()), SMALL)
    end = law.at(reached, beside[0]) * alone[1] / alone[0]
    needed = max(law.needed(end, beside[1]), SMALL)
    return Rehearsal(margins * (needed / reached) * new.beta, rehearsal.pairs)


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
    pairs, read = len(features.train.pairs), min(len(plan.taken), KERNEL_PAIRS)
    known = ["frozen features" + (f" of {read} of {pairs} training pairs" if read < pairs else "")]
    if rehearsal is not None and not single_token(features):  # which is all that such a forecast looks at
        known = []
    if rehearsal is not None:
        known.append(f"a rehearsal that saw {rehearsal.pairs} pairs")
    if pilot is not None:
        known.append(f"a pilot of {max(step for step in pilot.steps if step <= recipe.steps)} steps")
    return f"forecast of training {what}, from {', '.join(known[:-1]) + ' and ' if known[1:] else ''}{known[-1]}"
