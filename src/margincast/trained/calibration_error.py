"""How far do forecasts miss true runs that their constants do not know, and how far is one twin from another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from margincast.results import Json
from margincast.scores import crps_of_draws
from margincast.trained.fit_run import FitRun, rank_correlation
from margincast.trained.laws import EffectiveForecast, Laws
from margincast.trained.noise import COVERAGE, Noise, accuracies_of, drawn_accuracies, drawn_runs


def error_of(left_out: Sequence[tuple[FitRun, EffectiveForecast, Laws]], by: str) -> Json:
    """Of forecasts beside a rehearsal, at the ends of runs, held-out pairs; by: in words, what was left out.

    accuracy_median: points, of concepts;  margin_relative: the median of |forecast / run - 1|;  spearman: the mean
    crps: mean over concepts, accuracies in points and margins in rewards;  coverage: of 90% intervals
    floor: the same between twins, and for crps half their mean difference, which no forecast of a run can beat; None
    where no two runs are twins
    """
    table: dict[str, list[float]] = {}
    for run, forecast, laws in left_out:
        for name, values in _scores(run, forecast, laws).items():
            table.setdefault(name, []).extend(values)
    return {
        "left_out": by,
        "accuracy_median": float(np.median(table["accuracy"])),
        "margin_relative": float(np.median(table["margin"])),
        "spearman": float(np.mean(table["rank"])),
        "crps": {name: float(np.mean(table[f"crps {name}"])) for name in ("accuracy", "margin")},
        "coverage": {name: float(np.mean(table[f"inside {name}"])) for name in ("accuracy", "margin")},
        "floor": floor_of([run for run, _, _ in left_out]),
    }


def _scores(run: FitRun, forecast: EffectiveForecast, laws: Laws) -> Mapping[str, list[float]]:
    margins, true, beta = (forecast.rest + forecast.shift)[-1], run.margins[-1], run.trained.recipe.beta
    noise = laws.noise if laws.rehearsal is None else _doubted(laws, run)
    told, truth = accuracies_of(margins, run.groups), accuracies_of(true, run.groups)
    sizes = torch.tensor([len(rows) for rows in run.groups])
    accuracies = 100.0 * drawn_accuracies(told[None], sizes, torch.ones(1), noise)[:, 0, :-1]
    parts = forecast.rest[-1:], forecast.shift[-1:], run.plan.lengths[-1:]
    (drawn,) = drawn_runs(*parts, run.responses.concepts, run.responses.kinds, noise)
    means = beta * torch.stack([drawn[:, rows].mean(1) for rows in run.groups], dim=1)
    ends = [beta * float(true[rows].mean()) for rows in run.groups]
    points = (100.0 * truth).tolist()
    return {
        "accuracy": (100.0 * (told - truth)).abs().tolist(),
        "margin": [abs(float(margins.mean() / true.mean()) - 1.0)],
        "rank": [rank_correlation(margins, true)],
        "crps accuracy": crps_of_draws(accuracies.T, points).tolist(),
        "crps margin": crps_of_draws(means.T, ends).tolist(),
        "inside accuracy": [_inside(accuracies[:, place], x) for place, x in enumerate(points)],
        "inside margin": [_inside(means[:, place], x) for place, x in enumerate(ends)],
    }


def _doubted(laws: Laws, run: FitRun) -> Noise:
    assert laws.rehearsal is not None
    return laws.noise.times(laws.rehearsal.doubt(run.rehearsal_reached), "amplitude", "amplitude_early", "concept")


def _inside(draws: Tensor, true: float) -> float:
    ends = torch.tensor([0.5 - COVERAGE / 2, 0.5 + COVERAGE / 2], dtype=torch.float64)
    low, high = torch.quantile(draws.double(), ends).tolist()
    return float(low - 1e-9 <= true <= high + 1e-9)


def floor_of(runs: Sequence[FitRun]) -> Json | None:
    """Differences of twins: runs of the same training and held-out pairs and the same recipe but for the seed."""
    table: dict[str, list[float]] = {}
    for one, other in combinations(runs, 2):
        if not _twins(one, other):
            continue
        ends, beta = (one.margins[-1], other.margins[-1]), one.trained.recipe.beta
        shares = [accuracies_of(end, one.groups) for end in ends]
        table.setdefault("accuracy", []).extend((100.0 * (shares[0] - shares[1])).abs().tolist())
        means = [torch.stack([beta * end[rows].mean() for rows in one.groups]) for end in ends]
        table.setdefault("margins", []).extend((means[0] - means[1]).abs().tolist())
        whole = [float(end.mean()) for end in ends]
        table.setdefault("margin", []).append(abs(whole[0] / whole[1] - 1.0))
        table.setdefault("rank", []).append(rank_correlation(*ends))
    if not table:
        return None
    return {
        "accuracy_median": float(np.median(table["accuracy"])),
        "margin_relative": float(np.median(table["margin"])),
        "spearman": float(np.mean(table["rank"])),
        "crps": {
            "accuracy": 0.5 * float(np.mean(table["accuracy"])),
            "margin": 0.5 * float(np.mean(table["margins"])),
        },
    }


def _twins(one: FitRun, other: FitRun) -> bool:
    same = all(
        getattr(one.trained.features, split).pairs.fingerprint
        == getattr(other.trained.features, split).pairs.fingerprint
        for split in ("train", "heldout")
    )
    recipes = one.trained.recipe, other.trained.recipe
    return same and recipes[0].steps == recipes[1].steps and recipes[0].seed != recipes[1].seed
