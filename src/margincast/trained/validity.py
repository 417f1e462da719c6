"""How near is a forecast to the runs that its constants come from? What is far has intervals twice as wide.

Model and path length decide: they moved true runs furthest from forecasts. Learning rate, batch, beta and rank outside
the range of the runs are said, and widen nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from margincast.recipe.recipe import Recipe
from margincast.records import Features
from margincast.results import Json
from margincast.trained.amplitude import AmplitudeLaw
from margincast.trained.calibration import Calibration, size_gap
from margincast.trained.constants import Constants
from margincast.trained.laws import Laws
from margincast.trained.prior import package_prior

FAR_SIZE, FAR_PATH = 4.0, 2.0  # factors of the number of weights, and of the path length
DOUBLED = 2.0
WIDENED = ("amplitude", "amplitude_early", "concept", "accuracy", "accuracy_early", "shared_offset", "concept_offset")


@dataclass(frozen=True)
class Validity:
    """How near a calibration is to a run.

    model: "same", "family" or "other";  size_ratio: of the numbers of weights, None where not known
    outside: settings beyond those of its runs, in words;  far: in words, why intervals are doubled; () where they are
    not
    """

    calibration: Calibration
    model: str
    size_ratio: float | None
    response_tokens: tuple[int, int]
    path: float
    outside: tuple[str, ...]
    far: tuple[str, ...]

    def as_dict(self) -> Json:
        world = self.calibration.world
        return {
            "calibration": self.calibration.name,
            "fitted_on": self.calibration.constants.fitted_on,
            "model": self.model,
            "of_model": world.model,
            "size_ratio": self.size_ratio,
            "response_tokens": list(self.response_tokens),
            "path": self.path,
            "outside": list(self.outside),
            "far": list(self.far),
            "intervals_doubled": bool(self.far),
            "error": self.calibration.error,
        }

    @property
    def foreign(self) -> bool:
        """Whether the calibration is of a model that is nothing like this one."""
        return self.model == "other"


def validity_of(calibration: Calibration, features: Features, recipe: Recipe, path: float) -> Validity:
    """path: of the run, the sum of its learning rates;  recipe: with its number of steps"""
    world, constants = calibration.world, calibration.constants
    gap = size_gap(features.kind, world.kind)
    model = "family" if gap <= FAR_SIZE else "other"
    if world.model_hash == features.model_hash or (world.kind is None and not world.model_hash):
        model = "same"  # constants alone, whose user says that they are of this model
    lengths = [
        len(ids)
        for split in (features.train, features.heldout)
        for side in (split.chosen_ids, split.rejected_ids)
        for ids in side
    ]
    tested = constants.paths.get("lora" if recipe.train == "lora" else "all", (path, path))
    far = []
    if model == "other":
        far.append(f"it is of another model ({world.model})")
    if not tested[0] / FAR_PATH <= path <= tested[1] * FAR_PATH:
        far.append(f"its runs have paths of {tested[0]:.2g} to {tested[1]:.2g}, and this one {path:.2g}")
    if world.response_tokens is not None and max(lengths) > 2 * world.response_tokens[1]:
        far.append(f"its responses have up to {world.response_tokens[1]:.0f} tokens, and these {max(lengths)}")
    values: dict[str, float] = {
        "learning_rate": recipe.learning_rate,
        "steps": recipe.steps,
        "batch": recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps,
        "beta": recipe.beta,
    } | ({"rank": recipe.lora_r} if recipe.train == "lora" else {})
    outside = []
    for name, value in values.items():
        ends = getattr(world, name)
        if ends is not None and not ends[0] * 0.999 <= value <= ends[1] * 1.001:
            outside.append(f"{name} {value:g} (its runs: {ends[0]:g} to {ends[1]:g})")
    ratio = None if math.isinf(gap) else gap
    return Validity(calibration, model, ratio, (min(lengths), max(lengths)), path, tuple(outside), tuple(far))


def widened(constants: Constants, validity: Validity) -> Constants:
    """`constants` as a forecast that far from their runs takes them."""
    laws = [constants.from_features, constants.from_rehearsal]
    if validity.foreign:
        laws = [None if each is None else _of_foreign(each) for each in laws]
    if validity.far:
        laws = [None if each is None else replace(each, noise=each.noise.times(DOUBLED, *WIDENED)) for each in laws]
    assert laws[0] is not None
    return replace(constants, from_features=laws[0], from_rehearsal=laws[1])


def _of_foreign(laws: Laws) -> Laws:
    """How far a rehearsal gets says more of a foreign model than constants of another do.

    Two estimates of log A, weighed by their precision: that of the law, whose scale is unknown, with twice the spread
    between data sets that it has without a rehearsal; and log(R + 2) plus the mean gap of the package's runs, which
    spread around it by `rehearsal_deviation`. Both are linear in log(R + 2), so that the mixture is a law again.
    """
    law, prior = laws.rehearsal, package_prior()
    if law is None:
        return laws
    precise = 1.0 / prior.rehearsal_deviation**2
    part = precise / (precise + 1.0 / (DOUBLED * prior.alone.between) ** 2)
    rest, old = 1.0 - part, law.amplitude
    amplitude = AmplitudeLaw(
        math.exp(rest * math.log(old.scale) + part * prior.rehearsal_mean),
        rest * old.length,
        rest * old.pairs,
        rest * old.spread,
        old.adapter**rest,
    )
    return replace(laws, rehearsal=replace(law, amplitude=amplitude, power=rest * law.power + part))
