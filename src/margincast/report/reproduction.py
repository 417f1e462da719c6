"""What do the paper's Figures 1 to 5 look like here? Drawn from the records of a reproduction, and from nothing else.

`cosines.jsonl` and `curves.jsonl` in its folder hold everything that is in a figure, so figures can be drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from margincast.errors import needed
from margincast.paper.curves import PREFIXES, Curves, chosen
from margincast.paper.embeddings import Cosines
from margincast.paper.verdicts import SPLITS, TRAINED
from margincast.report.figures import INK, TRAIN, cosine_panels, new_figure, save_figure
from margincast.report.page import PageFigure, PageTable, Section
from margincast.report.tables import interval
from margincast.runs.store import write_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSINES, CURVES = "cosines.jsonl", "curves.jsonl"
SHOWN = {
    "fig2": ("margin", "reward margin"),
    "fig4": ("loss", "loss"),
    "fig5": ("accuracy", "accuracy"),
}
# From light to dark with K, apart in lightness alone too.
K_COLOURS = ("#e69f00", "#d55e00", "#cc3377", "#7b3294", "#1b1f6b", "#000000")
SAY = {True: "yes", False: "no", None: "undecided"}
VERDICT_HEADER = ("claim", "holds", "value [95%]")


@dataclass(frozen=True)
class Records:
    """Everything that a reproduction found, as its figures need it."""

    cosines: tuple[Cosines, ...]
    curves: tuple[Curves, ...]
    figures: tuple[str, ...]

    def save(self, folder: Path) -> None:
        write_jsonl(folder / COSINES, [one.row() for one in self.cosines])
        write_jsonl(folder / CURVES, [one.row() for one in self.curves])

    @staticmethod
    def load(folder: Path, figures: Sequence[str]) -> Records:
        """The records of a reproduction's folder."""

        def rows(name: str) -> list[Any]:
            return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]

        cosines = tuple(map(Cosines.from_row, rows(COSINES)))
        return Records(cosines, tuple(map(Curves.from_row, rows(CURVES))), tuple(figures))

    def draw(self, folder: Path) -> list[tuple[str, str]]:
        """Write every figure into `folder`/figures as SVG and PNG. Returns names and captions."""
        captions = []
        for one in self.cosines:
            save_figure(cosine_figure(one), folder / "figures", one.name)
            captions.append((one.name, cosine_caption(one)))
        for name in self.figures:
            if name in SHOWN:
                save_figure(curve_figure(self.curves, *SHOWN[name]), folder / "figures", name)
                captions.append((name, curve_caption(name, self.curves)))
        return captions


def cosine_figure(cosines: Cosines) -> Figure:
    side = {"matching": "matching ", "both": "all "}[cosines.side] + f"{cosines.input}s"
    title = side + (", norm applied twice" if cosines.double_norm else "")
    return cosine_panels(cosines.concepts, cosines.raw, cosines.centred, title)


def cosine_caption(cosines: Cosines) -> str:
    paper = cosines.input == "statement" and cosines.side == "matching"
    which = "as in the paper" if paper and not cosines.double_norm else "beyond the paper"
    if cosines.double_norm:
        which = "with the model's last norm applied twice, which is what the authors' scripts do"
    read = "bare statements" if cosines.input == "statement" else "whole questions, which is what training sees"
    sides = "those that match their persona" if cosines.side == "matching" else "matching and not"
    return (
        f"{cosines.figure.replace('fig', 'Figure ')}, {which}: average cosine between the embeddings of {read} "
        f"({sides}; {cosines.statements} of {len(cosines.concepts)} personas). Left raw, right after their mean is "
        "taken away."
    )


def curve_figure(curves: Sequence[Curves], quantity: str, label: str) -> Figure:
    """A quantity against step: rows by what trains, columns by split, a colour for each K.

    Lines are means over seeds, bands reach from the lowest seed to the highest; dashed lines are forecasts.
    """
    rows = [weights for weights in TRAINED if any(chosen(curves, weights, s) for s in ("training", "forecast"))]
    figure, axes = new_figure(2, rows=max(len(rows), 1), width=4.2, height=3.0)
    ks = sorted({one.spec.K for one in curves})
    colours = {k: K_COLOURS[index % len(K_COLOURS)] for index, k in enumerate(ks)}
    forecast = False
    for weights, line in zip(rows, axes, strict=False):
        for split, axis in zip(PREFIXES, line, strict=True):
            for k, runs in chosen(curves, weights, "training").items():
                _band(axis, runs, split, quantity, colours[k])
            for k, runs in chosen(curves, weights, "forecast").items():
                mean = _values(runs, split, quantity).mean(axis=0)
                # White under the dashes: a forecast lies on the run it foretells where it is right.
                axis.plot(runs[0].steps, mean, color="w", linewidth=1.6)
                axis.plot(runs[0].steps, mean, color=colours[k], linewidth=1.6, linestyle=(0, (2, 1.5)))
                forecast = True
            axis.set_title(f"{SPLITS[split]} pairs, {TRAINED[weights]}", fontsize=9, color=INK)
            axis.set_xlabel("step", fontsize=9, color=INK)
            axis.set_ylabel(label, fontsize=9, color=INK)
            if quantity == "accuracy":
                axis.set_ylim(-0.03, 1.03)
    line = needed("matplotlib.lines", "a figure").Line2D
    handles = [line([], [], color=colour, linewidth=2, label=f"K = {k}") for k, colour in colours.items()]
    if forecast:
        dashes = (0, (2, 1.5))
        handles.append(line([], [], color=TRAIN, linewidth=1.6, linestyle=dashes, label="forecast"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def curve_caption(name: str, curves: Sequence[Curves]) -> str:
    seeds = len({one.spec.seed for one in curves})
    return (
        f"{name.replace('fig', 'Figure ')}: {SHOWN[name][1]} against optimizer step for K personas. Lines are means "
        f"over {seeds} seeds, bands reach from the lowest to the highest; dashed: the forecast, made before them. "
        "Different K are different personas, as in the paper: some of the difference may be theirs."
    )


def _band(axis: Axes, runs: Sequence[Curves], split: str, quantity: str, colour: str) -> None:
    values = _values(runs, split, quantity)
    axis.fill_between(runs[0].steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axis.plot(runs[0].steps, values.mean(axis=0), color=colour, linewidth=2)


def _values(runs: Sequence[Curves], split: str, quantity: str) -> Any:
    return np.array([getattr(run, split)[quantity] for run in runs])


def verdict_rows(verdicts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[v["claim"], SAY[v["holds"]], interval(v)] for v in verdicts]


def reproduction_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """The page of a reproduction: its verdicts, then every figure, which is drawn again."""
    results = summary["results"]
    captions = Records.load(folder, results["figures"]).draw(folder)
    held = [v["holds"] for v in results["verdicts"]]
    return [
        Section(
            title="Verdicts",
            texts=[results["setting"]],
            reading=[
                f"Of {len(held)} claims {held.count(True)} hold here, {held.count(False)} do not, and "
                f"{held.count(None)} are undecided."
            ],
            tables=[
                PageTable("Every claim, judged", VERDICT_HEADER, verdict_rows(results["verdicts"]), text=True),
                # A table of its own: four columns do not fit a phone.
                PageTable(
                    "What was compared",
                    ("claim", "compared"),
                    [[v["claim"], v["compared"]] for v in results["verdicts"]],
                    text=True,
                ),
            ],
        ),
        Section(
            title="Figures",
            figures=[PageFigure(folder / "figures" / f"{name}.svg", caption) for name, caption in captions],
        ),
    ]
