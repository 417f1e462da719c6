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
from margincast.recipe.batches import batch_order
from margincast.recipe.optimizers import AdamW
from margincast.recipe.recipe import recorded_steps
from margincast.recipe.settings import TrainingSettings
from margincast.records import Features, FeatureSet, PairSet, SplitTrajectory, Trajectory
from margincast.runs.metrics import concept_rows
from margincast.trained.laws import (
    Laws,
    Plan,
    Responses,
    Seen,
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
    settings: TrainingSettings,
    *,
    rehearsal: Rehearsal | None = None,
    pilot: Trajectory | None = None,
) -> TrainedForecast:
    """What training by `settings` will do to margins, at step 0, every `eval_steps` and the last.

    features: of the untrained model;  rehearsal: of this run (`rehearse`), None forecasts from features alone
    pilot: some first steps of this run as trained, its last recorded one at most the last of the run

    Raises `InputError` for settings that a path length does not describe, for responses of several tokens without a
    rehearsal, and for a pilot of other pairs.
    """
    check_settings(settings)
    plan = plan_of(settings, len(features.train.pairs))
    laws = fitted(rehearsal is not None)
    who = responses_of(features, features.heldout)
    spaces = token_spaces(features, settings.beta) if single_token(features) else None
    if spaces is None and rehearsal is None:
        raise InputError(
            "responses of several tokens cannot be forecast from features alone here; let the forecast rehearse "
            "(--pilot above 0)"
        )
    told = None if rehearsal is None else rehearsal.heldout.double() / settings.beta
    seen = None if pilot is None else seen_in(pilot, features, settings)
    own = other = None
    path = torch.zeros(len(plan.lengths), len(who.chosen), dtype=torch.float64)
    if spaces is not None:
        deep = deep_spaces(features, settings.beta, plan.taken)
        own, other = token_spectra(deep[0].rows(plan.taken), *deep)
        path = shared_path(spaces[0], who, plan, laws.offset)
    made = effective_forecast(other, path, who, plan, laws, told, seen)
    noise = noise_of(laws, None if told is None else float(who.part(told).rest.mean()), seen, settings.max_steps)
    steps = recorded_steps(settings.max_steps, settings.eval_steps)
    at = torch.tensor(steps)
    rest, shift, lengths = made.rest[at], made.shift[at], plan.lengths[at]
    rows = concept_rows(features.heldout.pairs)
    sizes = torch.tensor([len(members) for members in rows.values()])
    accuracies = drawn_accuracies(learned(rest + shift, rows.values()), sizes, lengths / lengths[-1], noise)
    quantiles = torch.tensor([0.5 - LEVEL / 2, 0.5 + LEVEL / 2], dtype=torch.float64)
    bounds: list[Tensor] = []
    groups = {**rows, "": list(range(len(who.chosen)))}
    margins: dict[str, list[Estimate]] = {name: [] for name in groups}
    for draws in drawn_runs(rest, shift, lengths, who.concepts, who.kinds, noise):
        bounds.append(torch.quantile(settings.beta * draws, quantiles, dim=0))
        for name, members in groups.items():
            margins[name].append(interval(settings.beta * draws[:, members].mean(1)))
    bands = {
        name: Band(tuple(map(interval, accuracies[..., place].T)), tuple(margins[name]))
        for place, name in enumerate(groups)
    }
    least = torch.nn.functional.one_hot(accuracies[:, -1, :-1].argmin(1), len(rows)).double().mean(0)
    low, high = torch.stack(bounds, dim=1)
    return TrainedForecast(
        steps=steps,
        train=train_split(features, spaces, own, other, plan, laws, made.rest, settings.beta, at),
        heldout=SplitTrajectory(features.heldout.pairs, settings.beta * (rest + shift)),
        beta=settings.beta,
        loss_type=settings.loss if settings.loss.parameters else settings.loss.name,
        origin=origin_of(settings, features, plan, rehearsal, pilot),
        bands=bands,
        low=low,
        high=high,
        draws=accuracies[..., -1],
        worst=dict(zip(rows, least.tolist(), strict=True)),
        spectrum=other,
        length=sum(plan.learning_rates),
        tested=tested_paths(plan.lora),
    )


def noise_of(laws: Laws, reached: float | None, seen: Seen | None, max_steps: int) -> Noise:
    """The noise of this forecast. reached: nats that the rehearsal reached"""
    noise, sizes = laws.noise, ("amplitude", "early", "concept")
    if reached is not None and laws.rehearsal is not None:
        noise = noise.times(laws.rehearsal.doubt(reached), *sizes)
    if seen is not None:  # what the pilot has shown is not to be guessed
        noise = noise.times(1.0 - seen.step / max_steps, *sizes, "accuracy", "accuracy_early")
    return noise


def check_settings(settings: TrainingSettings) -> None:
    """Raises `InputError` for settings that a path length does not describe."""
    if settings.train == "head":
        raise InputError("with --train head the backbone is frozen: use --backbone frozen, which is exact")
    if settings.optimizer not in ("adamw", "adam"):
        raise InputError(
            f"forecasts of a trained backbone know adamw and adam, not {settings.optimizer}: how far a run gets is its "
            "learning rate times its steps only where steps do not depend on the size of the gradient"
        )


def plan_of(settings: TrainingSettings, pairs: int) -> Plan:
    rates = learning_rates(
        settings.learning_rate, settings.lr_scheduler_type, settings.max_steps, settings.warmup_steps
    )
    batches = batch_order(
        pairs, settings.per_device_train_batch_size, settings.max_steps, settings.seed,
        settings.gradient_accumulation_steps,
    )  # fmt: skip
    optimizer = AdamW(settings.learning_rate, settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon)
    return Plan(tuple(rates), tuple(batches), optimizer, settings.loss, settings.train == "lora")


def rescaled(rehearsal: Rehearsal, features: Features, old: TrainingSettings, new: TrainingSettings) -> Rehearsal:
    """The rehearsal of `old` as one of `new` is expected to be: the runs' ends differ as features alone have it."""
    laws = fitted(rehearsed=True)
    if laws.rehearsal is None or not single_token(features):
        raise InputError("settings can be compared for responses of one token")
    law, plans = laws.rehearsal, [plan_of(settings, len(features.train.pairs)) for settings in (old, new)]
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


def seen_in(pilot: Trajectory, features: Features, settings: TrainingSettings) -> Seen:
    """The last recorded step of `pilot`. Raises `InputError` where it is of other pairs, or has not begun."""
    rows = {pair.id: row for row, pair in enumerate(pilot.heldout.pairs)}
    missing = [pair.id for pair in features.heldout.pairs if pair.id not in rows]
    if missing:
        raise InputError(
            f"the pilot did not record held-out pair {missing[0]} and {len(missing) - 1} more: give the run the same "
            "data, --holdout and --seed"
        )
    steps = [step for step in pilot.steps if 0 < step <= settings.max_steps]
    if not steps:
        raise InputError("the pilot has no recorded step after step 0")
    order = [rows[pair.id] for pair in features.heldout.pairs]
    margins = pilot.heldout.margins[pilot.steps.index(steps[-1])][order]
    return Seen(margins.double() / pilot.beta, steps[-1])


def train_split(
    features: Features, spaces: tuple[TokenSpace, TokenSpace] | None, own: Spectrum | None, other: Spectrum | None,
    plan: Plan, laws: Laws, heldout: Tensor, beta: float, at: Tensor,
) -> SplitTrajectory:  # fmt: skip
    """Training pairs, as large against held-out ones as the frozen shape has them. None are forecast without one."""
    if spaces is None or own is None or other is None:
        return SplitTrajectory(PairSet(()), torch.zeros(len(at), 0, dtype=torch.float64))
    who = responses_of(features, features.train)
    alpha, ridge = laws.shape.of(float(heldout[-1].mean())), laws.shape.ridge
    size = responses_of(features, features.heldout).part(other.shape(alpha, ridge)).rest.mean().abs()
    shape = who.part(own.shape(alpha, ridge)).rest / size
    x = plan.lengths / plan.lengths[-1]
    path = shared_path(spaces[0], who, plan, laws.offset) * laws.offset.fading(x)[:, None]
    margins = heldout.mean(1, keepdim=True) * shape + path
    return SplitTrajectory(features.train.pairs, beta * margins[at])


def origin_of(
    settings: TrainingSettings, features: Features, plan: Plan, rehearsal: Rehearsal | None, pilot: Trajectory | None
) -> str:
    what = "a LoRA adapter" if settings.train == "lora" else "all weights"
    pairs, read = len(features.train.pairs), min(len(plan.taken), LARGEST)
    known = ["frozen features" + (f" of {read} of {pairs} training pairs" if read < pairs else "")]
    if rehearsal is not None:
        known.append(f"a rehearsal that saw {rehearsal.pairs} pairs")
    if pilot is not None:
        known.append(f"a pilot of {max(step for step in pilot.steps if step <= settings.max_steps)} steps")
    return f"forecast of training {what}, from {', '.join(known[:-1]) + ' and ' if known[1:] else ''}{known[-1]}"
