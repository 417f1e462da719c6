"""What do a good and a bad forecast look like? Runs of the bank, and the forecasts that had not seen their personas.

    MARGINCAST_PERSONA_DIR=... python -m benchmarks.forecast.pictures RUN [RUN ...]

Draws `docs/assets/forecast-cases.svg`, a row for each run: held-out accuracy of every concept and mean margin against
the step, the run as points and the forecast as a line with its 90% band; and the margins of pairs at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.forecast.evaluate import ENOUGH
from benchmarks.forecast.truth import Truth, every_run, laws_of
from margincast.report.figures import CONCEPT_COLOURS, INK, TRAIN, new_figure, save_figure
from margincast.trained.forecast import noise_of
from margincast.trained.noise import accuracies_of, drawn_accuracies, drawn_runs, interval

ASSETS = Path(__file__).parents[2] / "docs" / "assets"


def draw(seen: Truth, axes: Sequence[Any], runs: Sequence[Truth]) -> None:
    laws = laws_of([run for run in runs if run.run.personas != seen.run.personas], with_rehearsal=True)
    made, at = seen.forecast(laws), torch.tensor(seen.steps)
    rest, shift, lengths = made.rest[at], made.shift[at], seen.plan.lengths[at]
    noise = noise_of(laws, float(seen.rehearsal_parts.rest.mean()), None, seen.run.steps)
    sizes = torch.tensor([len(rows) for rows in seen.groups])
    accuracies = drawn_accuracies(accuracies_of(rest + shift, seen.groups), sizes, lengths / lengths[-1], noise)
    margins = [
        interval(seen.run.beta * draws.mean(1))
        for draws in drawn_runs(rest, shift, lengths, seen.responses.concepts, seen.responses.kinds, noise)
    ]
    colours = CONCEPT_COLOURS[: len(seen.groups)]
    true = accuracies_of(seen.margins, seen.groups)
    true[0] = 0.0
    for place, (name, colour) in enumerate(zip(seen.run.concepts, colours, strict=True)):
        _band(axes[0], seen.steps, [interval(one) for one in accuracies[..., place].T], colour)
        axes[0].plot(seen.steps, true[:, place], "o", color=colour, markersize=4, label=name)
    _band(axes[1], seen.steps, margins, TRAIN)
    axes[1].plot(seen.steps, seen.run.beta * seen.margins.mean(1), "o", color=INK, markersize=4)
    told, end = (seen.run.beta * values[-1] for values in (rest + shift, seen.margins))
    for rows, colour in zip(seen.groups, colours, strict=True):
        axes[2].plot(told[rows], end[rows], ".", color=colour, markersize=4)
    axes[2].axline((0.0, 0.0), slope=1.0, color=TRAIN, linewidth=0.8)
    axes[0].set_title(seen.run.name, fontsize=9, color=INK, loc="left")
    axes[0].legend(fontsize=6.5, frameon=False, loc="lower right")
    axes[0].set_ylim(-0.03, 1.03)
    labels = (
        ("step", "held-out accuracy"),
        ("step", "mean held-out margin"),
        ("margin, forecast", "margin, of the run"),
    )
    for axis, (across, up) in zip(axes, labels, strict=True):
        axis.set_xlabel(across, fontsize=8, color=INK)
        axis.set_ylabel(up, fontsize=8, color=INK)


def _band(axis: Any, steps: Sequence[int], spans: Sequence[Any], colour: str) -> None:
    axis.fill_between(steps, [s.low for s in spans], [s.high for s in spans], color=colour, alpha=0.18, linewidth=0)
    axis.plot(steps, [s.value for s in spans], color=colour, linewidth=1.6)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.pictures", description=__doc__)
    parser.add_argument("runs", nargs="+", help="names of runs of the bank")
    names = parser.parse_args().runs
    known = {seen.run.name: seen for seen in every_run()}
    runs = [seen for seen in known.values() if seen.run.batch >= ENOUGH]
    figure, axes = new_figure(3, rows=len(names), width=3.4, height=2.8)
    for name, line in zip(names, axes, strict=True):
        draw(known[name], line, runs)
    save_figure(figure, ASSETS, "forecast-cases")
    (ASSETS / "forecast-cases.png").unlink()


if __name__ == "__main__":
    main()
