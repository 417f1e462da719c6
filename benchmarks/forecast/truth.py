"""A run of the bank, as forecasts see it: what they may look at, and the truth. Margins are over beta, in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.forecast.bank import load, rehearsal_of, whole
from benchmarks.forecast.plan import PLAN, Run
from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.batches import batch_order
from margincast.recipe.losses import get_loss
from margincast.recipe.optimizers.adamw import AdamW
from margincast.trained.laws import (
    EffectiveForecast,
    Laws,
    PilotLaw,
    PilotMargins,
    Plan,
    Responses,
    ShapeLaw,
    corrected,
    shape_spread,
    shared_path,
)
from margincast.trained.offset import OffsetLaw, Parts
from margincast.trained.shape import Spectrum, side_by_side, token_spectra, unit
from margincast.trained.time import ADAPTER_UNIT, UNIT

RIDGE = 1e-3


@dataclass(frozen=True)
class Truth:
    run: Run
    tensors: dict[str, Tensor]
    _kept: dict[object, Any] = field(default_factory=dict)

    def kept(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @cached_property
    def spaces(self) -> tuple[TokenSpace, TokenSpace]:
        def space(name: str) -> TokenSpace:
            yes = self.tensors[f"{name}_yes"].long()
            return TokenSpace(self.tensors[f"features_{name}"].double(), yes, 1 - yes, self.run.beta, 2)

        return space("train"), space("heldout")

    @cached_property
    def who(self) -> Responses:
        heldout = self.spaces[1]
        return Responses(heldout.chosen, heldout.rejected, self.tensors["heldout_concept"].long())

    @cached_property
    def plan(self) -> Plan:
        run = self.run
        batches = tuple(batch_order(len(self.spaces[0]), run.batch, run.steps, run.seed))
        rates = (run.learning_rate,) * run.steps
        return Plan(rates, batches, AdamW(run.learning_rate), get_loss("sigmoid"), self.lora)

    @property
    def lora(self) -> bool:
        return self.run.train == "lora"

    @cached_property
    def truth(self) -> Tensor:
        """(recorded steps, pairs) held-out margins."""
        return self.tensors["heldout"].double()

    @cached_property
    def steps(self) -> list[int]:
        return [int(step) for step in self.tensors["steps"]]

    def part(self, margins: Tensor) -> Parts:
        return self.who.part(margins)

    @cached_property
    def parts(self) -> Parts:
        return self.part(self.truth)

    @cached_property
    def sizes(self) -> list[float]:
        """The mean margin without offsets, at every recorded step."""
        return self.parts.rest.mean(1).tolist()

    @cached_property
    def told_parts(self) -> Parts:
        return self.part(self.told)

    @cached_property
    def sign(self) -> Tensor:
        """+1 for pairs that prefer No, -1 for Yes: a shift times this is a number."""
        return self.who.kinds[0][0].sign

    @cached_property
    def end(self) -> Parts:
        return self.part(self.truth[-1])

    @cached_property
    def amplitude(self) -> float:
        return max(0.1, float(self.end.rest.mean()))

    @cached_property
    def pilot(self) -> PilotMargins:
        """Of a tenth of the steps."""
        return PilotMargins(self.truth[self.steps.index(self.run.pilot)], self.run.pilot)

    @cached_property
    def told(self) -> Tensor:
        return load_file(rehearsal_of(self.run))["heldout"].double()

    @property
    def length(self) -> float:
        return self.lengths(self.run.steps)

    def lengths(self, step: int) -> float:
        return step * self.run.learning_rate / (ADAPTER_UNIT if self.lora else UNIT)

    @cached_property
    def spread(self) -> float:
        return shape_spread(self.spectrum, self.who, ShapeLaw(0.0, 0.0, RIDGE))

    @cached_property
    def last_spectrum(self) -> Spectrum:
        """Of the features that the unembedding reads."""
        train, heldout = self.spaces
        return token_spectra(train.rows(self.plan.taken), heldout)[0]

    @cached_property
    def spectrum(self) -> Spectrum:
        inner = self.tensors["features_layers_train"], self.tensors["features_layers_heldout"]
        layers = side_by_side(inner[0][self.plan.taken], *inner)
        train, heldout = (replace(space, features=deep) for space, deep in zip(self.spaces, layers, strict=True))
        return token_spectra(train.rows(self.plan.taken), heldout)[0]

    def shape(self, alpha: float) -> Tensor:
        """The frozen shape without offsets, kept."""
        return self.kept(("shape", alpha), lambda: unit(self.part(self.spectrum.shape(alpha, RIDGE)).rest))

    def amplitude_by(self, laws: Laws) -> float:
        """What features alone say."""
        return self.plan.amplitude(laws.amplitude, self.spread)

    def offset_path(self, law: OffsetLaw) -> Tensor:
        key = "path", law.rate, law.growth
        return self.kept(key, lambda: shared_path(self.spaces[0], self.who, self.plan, law))

    def correct(self, made: EffectiveForecast, seen: PilotMargins, law: PilotLaw) -> EffectiveForecast:
        return corrected(made, self.who, self.plan.lengths / self.plan.lengths[-1], seen, law)

    @cached_property
    def concepts(self) -> list[list[int]]:
        return [(self.who.concepts == number).nonzero()[:, 0].tolist() for number in range(len(self.run.concepts))]


@cache
def every_run() -> list[Truth]:
    """All runs of which everything is kept."""
    return [Truth(run, load(run)) for run in PLAN if whole(run)]
