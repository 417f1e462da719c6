"""Did the run come where the forecast said? Its medians and intervals against what came, by concept and by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from margincast.intervals import Estimate, bootstrap
from margincast.records import SplitTrajectory
from margincast.results import Json
from margincast.runs.metrics import concept_rows
from margincast.scores import Array, crps_of_accuracy, crps_of_draws, crps_of_margin, floor_of, ratio

QUANTITIES = {"accuracy": crps_of_accuracy, "margin": crps_of_margin}
LEVEL = 0.9  # of the intervals that forecasts keep


@dataclass(frozen=True)
class Outcome:
    """One quantity of the held-out pairs of one concept ("": of all) at one step.

    value, low, high: the forecast's median and 90% interval;  run: what came;  crps: of the forecast
    floor: half of the mean difference of the run and its twins;  twins: CRPS of the twins' runs taken as the forecast
    scored: CRPS of the forecast in the mean over the run and its twins. These three are None without twins.
    """

    step: int
    concept: str
    quantity: str
    value: float
    low: float
    high: float
    run: float
    crps: float
    floor: float | None = None
    scored: float | None = None
    twins: float | None = None

    @property
    def inside(self) -> bool:
        """Whether the run is in the interval."""
        return self.low <= self.run <= self.high

    def as_dict(self) -> Json:
        """A row of `foretold.jsonl` and of `results.foretold`."""
        return asdict(self) | {"concept": self.concept or "all", "inside": self.inside}


@dataclass(frozen=True)
class Foretold:
    """Every outcome, steps in order, and the share of single pairs inside their interval at the last step.

    partial: concepts of which the run recorded some of the forecast's pairs only, so that no interval is of them
    """

    outcomes: tuple[Outcome, ...]
    pairs: float
    partial: tuple[str, ...]

    @property
    def end(self) -> list[Outcome]:
        """The outcomes of the last step."""
        return [each for each in self.outcomes if each.step == self.outcomes[-1].step]

    def concepts(self, quantity: str, end: bool = True) -> list[Outcome]:
        """Those of single concepts, or of all pairs where there is one concept alone."""
        listed = [each for each in (self.end if end else self.outcomes) if each.quantity == quantity]
        return [each for each in listed if each.concept] or listed

    def rho(self, quantity: str) -> Estimate | None:
        """CRPS over the floor, concepts of the last step added up, with a 95% bootstrap over concepts; None without
        twins, nan where twins do not differ."""
        listed = self.concepts(quantity)
        if not listed or listed[0].floor is None:
            return None
        scored, floor = (np.array([getattr(each, name) for each in listed]) for name in ("scored", "floor"))
        return bootstrap(ratio, scored, floor)

    def as_dict(self) -> Json:
        """`results.inside`, `results.crps`, `results.rho` and `results.foretold` of `compare`."""
        inside: Json = {"level": LEVEL, "pairs": self.pairs, "partial": list(self.partial)}
        crps: Json = {}
        rho: Json = {}
        for quantity in QUANTITIES:
            at_end, ever = self.concepts(quantity), self.concepts(quantity, end=False)
            inside[quantity] = {
                "end": _share(at_end),
                "steps": _share(ever),
                "of": len(at_end),
                "outside": [each.concept or "all" for each in at_end if not each.inside],
            }
            crps[quantity] = float(np.mean([each.crps for each in at_end]))
            found = self.rho(quantity)
            rho[quantity] = None if found is None else found.as_dict()
        rows = [each.as_dict() for each in self.end]
        return {"inside": inside, "crps": crps, "rho": rho, "foretold": rows}


def _share(outcomes: Sequence[Outcome]) -> float:
    return sum(each.inside for each in outcomes) / len(outcomes)


def foretold(
    bands: Mapping[str, Tensor], at: Sequence[int], steps: Sequence[int], forecast: SplitTrajectory,
    runs: Sequence[SplitTrajectory],
) -> Foretold | None:  # fmt: skip
    """How the first of `runs` came against the intervals `bands` of `intervals_of`; the others are its twins.

    forecast: held-out pairs of the forecast, all of them;  at: which of its recorded steps are compared, `steps` by
    number;  runs: held-out margins at these steps of those of the pairs that all runs have, in the forecast's order

    None where the run has all pairs of no concept.
    """
    kept = {pair.id for pair in runs[0].pairs}
    everywhere = concept_rows(forecast.pairs)
    groups = {"": list(range(len(forecast.pairs))), **everywhere}
    whole = [name for name, rows in groups.items() if all(forecast.pairs[row].id in kept for row in rows)]
    if not whole:
        return None
    rows_of = {"": list(range(len(runs[0].pairs))), **concept_rows(runs[0].pairs)}
    outcomes: list[Outcome] = []
    for quantity, score in QUANTITIES.items():
        band = bands[f"band_{quantity}"][[list(groups).index(name) for name in whole]][:, list(at)].double().numpy()
        came = np.stack([[_means(run, rows_of[name], quantity) for name in whole] for run in runs])
        median, low, high = (band[..., part] for part in range(3))
        crps = np.stack([score(median, low, high, run, LEVEL) for run in came])
        beside = None
        if len(runs) > 1:
            twins = crps_of_draws(np.moveaxis(came[1:], 0, -1), came[0])
            beside = floor_of(came), crps.mean(axis=0), twins
        for place, name in enumerate(whole):
            for index, step in enumerate(steps):
                scores = () if beside is None else tuple(float(each[place, index]) for each in beside)
                numbers = (float(each[place, index]) for each in (median, low, high, came[0], crps[0]))
                outcomes.append(Outcome(step, name, quantity, *numbers, *scores))
    outcomes.sort(key=lambda each: each.step)
    columns = [row for row, pair in enumerate(forecast.pairs) if pair.id in kept]
    low_pairs, high_pairs = (bands[f"heldout_{end}"][at[-1]][columns] for end in ("low", "high"))
    last = runs[0].margins[-1]
    inside = ((low_pairs <= last) & (last <= high_pairs)).double().mean()
    return Foretold(tuple(outcomes), float(inside), tuple(name for name in everywhere if name not in whole))


def _means(run: SplitTrajectory, rows: Sequence[int], quantity: str) -> Array:
    """(steps,) of a quantity over the pairs at `rows`."""
    margins = run.margins[:, list(rows)].double()
    of = margins if quantity == "margin" else (margins > 0).double()
    return np.asarray(of.mean(dim=1).numpy())
