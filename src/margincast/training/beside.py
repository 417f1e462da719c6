"""What did a forecast say of the step that a trainer logs? Its numbers, beside the run's own and under their names.

`forecast/` goes before a name of `metrics.jsonl`, which is TRL's; `/low` and `/high` after it, where the forecast has
intervals: `forecast/eval_rewards/margins/low`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.trainer_callback import CallbackHandler, TrainerCallback

from margincast.errors import InputError
from margincast.recipe.losses import Loss, get_loss
from margincast.records import Trajectory
from margincast.runs.load import Run, intervals_of, load_run
from margincast.runs.metrics import metric_rows

PREFIX = "forecast/"
SHOWN = {"margin": "rewards/margins", "accuracy": "rewards/accuracies"}
# Of one metric at every recorded step: value, low, high.
Interval = Sequence[Sequence[float]]


@dataclass(frozen=True)
class ForecastLog:
    """A forecast as a trainer's log shows it.

    rows: what is shown at each of its steps, by name;  folder: where it was read from, if it was
    """

    trajectory: Trajectory
    rows: Mapping[int, Mapping[str, float]]
    folder: Path | None

    @property
    def every(self) -> int:
        """How far apart its recorded steps are. Raises `InputError` where it has none after step 0."""
        if len(self.trajectory.steps) < 2:
            raise InputError("the forecast has no step after step 0")
        return self.trajectory.steps[1] - self.trajectory.steps[0]

    def check(self, beta: float, loss: Loss) -> None:
        """Raises `InputError` where a run with these settings has margins of another kind."""
        of = self.trajectory
        mine = get_loss(of.loss_type, of.beta, without_reference=True)
        if of.beta != beta:
            raise InputError(f"the forecast has beta {of.beta:g}, the trainer {beta:g}; forecast with the trainer's")
        if (mine.name, dict(mine.parameters)) != (loss.name, dict(loss.parameters)):
            raise InputError(
                f"the forecast has loss_type {mine.name!r} {dict(mine.parameters)}, the trainer {loss.name!r} "
                f"{dict(loss.parameters)}; forecast with the trainer's"
            )


def forecast_log(forecast: Trajectory | Run | str | Path) -> ForecastLog:
    """forecast: as `mc.forecast` gives it, or its run folder. Raises `InputError` for a folder that holds none."""
    if isinstance(forecast, (str, Path)):
        forecast = load_run(forecast)
    folder = forecast.folder if isinstance(forecast, Run) else None
    trajectory = forecast.trajectory if isinstance(forecast, Run) else forecast
    intervals = _bands(forecast, trajectory.heldout.pairs.concepts)
    rows: dict[int, dict[str, float]] = {}
    for index, row in enumerate(metric_rows(trajectory)):
        # A split without pairs has no means, which are then no numbers.
        shown = {name: row[name] for name in row if name.endswith(tuple(SHOWN.values())) and row[name] == row[name]}
        for name, band in intervals.items():
            shown |= dict(zip((name, f"{name}/low", f"{name}/high"), band[index], strict=True))
        rows[trajectory.steps[index]] = {f"{PREFIX}{name}": value for name, value in shown.items()}
    return ForecastLog(trajectory, rows, folder)


def _bands(forecast: Trajectory | Run, concepts: Sequence[str]) -> dict[str, Interval]:
    """By metric: the bands of a forecast that is not exact; nothing for one that is."""
    tensors = intervals_of(forecast)
    return {
        _name(group, metric): band
        for metric in SHOWN
        if f"band_{metric}" in tensors
        for group, band in zip(("", *concepts), tensors[f"band_{metric}"].tolist(), strict=True)
    }


def _name(group: str, metric: str) -> str:
    return f"eval_{group}_{SHOWN[metric]}" if group else f"eval_{SHOWN[metric]}"


def go_first(callback: TrainerCallback) -> bool:
    """Let `callback`, which is being called, have its turn before all others of its trainer; whether that was done.

    What a callback adds to a log reaches those after it alone, transformers puts the trackers of `report_to` before
    those that a user gives, and no callback is told who calls it. So the caller is looked for.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackHandler) and callback in caller.callbacks:
            # Those before move up by one, in their order: the round that is under way leaves out none of them.
            caller.callbacks.remove(callback)
            caller.callbacks.insert(0, callback)
            return True
        frame = frame.f_back
    return False
