"""A forecast or a run: margins of every pair at every recorded step; a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from margincast.decision import verdict
from margincast.records import Trajectory
from margincast.report import tables
from margincast.report.figures import run_curves, save_figure
from margincast.report.saving import Contents, saving
from margincast.report.trained import band_curves, trained_results
from margincast.results import PRESENTERS, Json, Presenter
from margincast.runs.layout import INTERVALS
from margincast.runs.metrics import concept_results
from margincast.runs.save import data_summary, save_trajectory, trajectory_results
from margincast.runs.store import write_tensors
from margincast.trained.forecast import TrainedForecast


def rows(run: Trajectory) -> list[Json]:
    found: list[Json] = []
    for name, split in (("train", run.train), ("heldout", run.heldout)):
        for index, step in enumerate(run.steps):
            margins = split.margins[index].tolist()
            chosen = margins if split.chosen is None else split.chosen[index].tolist()
            found += [
                {"step": step, "split": name, "id": pair.id, "concept": pair.concept, "margin": margin}
                | ({} if split.chosen is None else {"chosen": reward})
                for pair, margin, reward in zip(split.pairs, margins, chosen, strict=True)
            ]
    return found


def summary(run: Trajectory) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"{run.origin.capitalize()}: step {run.steps[-1]}"
    return title, tables.CONCEPT_HEADER, tables.concept_rows(concept_results(run))


def leave(run: Trajectory, folder: Path) -> Contents:
    from margincast.recipe.losses import get_loss

    metrics = save_trajectory(folder, run)
    loss = get_loss(run.loss_type, run.beta, without_reference=True)
    forecast = run.origin.startswith("forecast")
    trains = "all" if isinstance(run, TrainedForecast) else "head" if forecast else run.origin
    config: Json = {"train": trains, "beta": run.beta, "max_steps": run.steps[-1]}
    config |= {**loss.parameters, "loss_type": loss.name, "beta": run.beta}
    results = trajectory_results(run, metrics, 0.0)
    if isinstance(run, TrainedForecast):
        write_tensors(folder / INTERVALS, run.interval_tensors)
        results |= {**trained_results(run, None), "sweep": None}
    if forecast:
        results["verdict"] = verdict(run).as_dict()
    figure = band_curves(run) if isinstance(run, TrainedForecast) else run_curves(run)
    save_figure(figure, folder / "figures", "curves")
    both = type(run.train.pairs)(run.train.pairs.pairs + run.heldout.pairs.pairs)
    data = data_summary(both, run.train.pairs, run.heldout.pairs, "given in Python")
    return Contents("forecast" if forecast else "train", results, config, {"data": data})


PRESENTERS.register("run")(Presenter(rows, summary, saving(leave)))
