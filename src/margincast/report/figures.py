"""The figures, one function each: records in, a matplotlib figure out."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from margincast.comparison import Comparison
from margincast.errors import needed
from margincast.records import Trajectory
from margincast.report.tables import interval
from margincast.results import Json
from margincast.runs.metrics import concept_rows, metric_rows
from margincast.runs.store import atomic_path
from margincast.shown import visible
from margincast.structure.inspect import Structure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, TRAIN, HELDOUT, QUIET = "#1f2933", "#7b8794", "#c2410c", "#d9dee3"
# Okabe and Ito's colours, which stay apart for colour-blind readers; dashes tell the second round of eight apart.
CONCEPT_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#7f6a00")
PANELS = (("rewards/margins", "reward margin"), ("loss", "loss"), ("rewards/accuracies", "accuracy"))
LABEL_LIMIT = 28
# More concepts than colours and dashes can tell apart are drawn alike, and named together.
NAMED_CONCEPTS = 3 * len(CONCEPT_COLOURS)
MATRIX_NAMES = 30


def new_figure(columns: int, rows: int = 1, width: float = 3.6, height: float = 3.0) -> tuple[Figure, Any]:
    """A figure with `rows` x `columns` axes, independent of any display or global state."""
    figure = needed("matplotlib.figure", "a figure").Figure(
        figsize=(width * columns, height * rows), layout="constrained"
    )
    needed("matplotlib.backends.backend_agg", "a figure").FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(TRAIN)
        axis.tick_params(colors=INK, labelsize=8)
        axis.grid(color=QUIET, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.svg and `name`.png into `folder`. The same figure gives the same bytes."""
    mpl = needed("matplotlib", "a figure")
    with mpl.rc_context({"svg.hashsalt": "margincast", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        # The layout is found once: every drawing would start from where the last one left it, and move a little.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for kind, metadata in (("svg", {"Date": None, "Creator": "margincast"}), ("png", {"Software": "margincast"})):
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)


def short(name: str) -> str:
    """`name` as a label: one line of limited length, taken literally by matplotlib."""
    line = visible(" ".join(name.split()))
    if len(line) > LABEL_LIMIT:
        # Cut in the middle: names of one family begin alike.
        half = LABEL_LIMIT // 2
        line = f"{line[:half]}…{line[1 - half :]}"
    # matplotlib reads text between dollars as mathematics, and hides labels that begin with an underscore.
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def styles(names: Sequence[str]) -> dict[str, Json]:
    """Colour, dash and label of every concept, stable for a given order of names."""
    if len(names) > NAMED_CONCEPTS:
        together = f"each of {len(names)} concepts"
        return {
            name: {"color": "#9fb3c8", "linestyle": "-", "label": None if index else together}
            for index, name in enumerate(names)
        }
    dashes = ("-", (0, (4, 1.5)), (0, (1, 1)))
    return {
        name: {
            "color": CONCEPT_COLOURS[index % len(CONCEPT_COLOURS)],
            "linestyle": dashes[index // len(CONCEPT_COLOURS)],
            "label": short(name),
        }
        for index, name in enumerate(names)
    }


def legend_height(concepts: int) -> float:
    """Inches that a legend of `concepts` and two more lines needs."""
    return 0.17 * (min(concepts, NAMED_CONCEPTS) + 3)


def run_curves(trajectory: Trajectory) -> Figure:
    """Margin, loss and accuracy against step: training, held-out, and every concept's held-out pairs."""
    rows = metric_rows(trajectory)
    steps = trajectory.steps
    concepts = styles(trajectory.heldout.pairs.concepts)
    figure, axes = new_figure(3, height=max(3.0, legend_height(len(concepts))))
    for axis, (key, label) in zip(axes[0], PANELS, strict=True):
        if len(concepts) > 1:
            for concept, style in reversed(concepts.items()):
                values = [row[f"eval_{concept}_{key}"] for row in rows]
                axis.plot(steps, values, linewidth=1.0, alpha=0.75, **style)
        axis.plot(steps, [row[key] for row in rows], color=TRAIN, linewidth=2, label="training")
        axis.plot(steps, [row[f"eval_{key}"] for row in rows], color=INK, linewidth=2, label="held-out")
        _label(axis, "step", label, key)
    _legend(figure, axes[0][0])
    return figure


def comparison_curves(comparison: Comparison, title_a: str, title_b: str) -> Figure:
    """Held-out margin, loss and accuracy of both runs: A dashed, B solid, all pairs in ink, concepts in colour.

    B is wide and pale, A thin upon it: both are seen where they agree.
    """
    a, b = metric_rows(comparison.a), metric_rows(comparison.b)
    steps = comparison.a.steps
    concepts = comparison.a.heldout.pairs.concepts
    lines: dict[str, Json] = {"": {"color": INK}}
    if len(concepts) > 1:
        lines |= {f"{name}_": style for name, style in styles(concepts).items()}
    figure, axes = new_figure(3, height=max(3.0, legend_height(len(concepts))))
    for axis, (key, label) in zip(axes[0], PANELS, strict=True):
        for prefix, style in reversed(lines.items()):
            width = 1.8 if prefix == "" else 1.1
            for rows, look, title in (
                (b, {"linewidth": 2.6 * width, "alpha": 0.35}, title_b),
                (a, {"linewidth": width, "linestyle": (0, (3, 1.5))}, title_a),
            ):
                values = [row[f"eval_{prefix}{key}"] for row in rows]
                named = title if prefix == "" else style["label"] if rows is b else None
                axis.plot(steps, values, color=style["color"], label=named, **look)
        _label(axis, "step", f"held-out {label}", key)
    _legend(figure, axes[0][0])
    return figure


def margin_scatter(comparison: Comparison, title_a: str, title_b: str) -> Figure:
    """Every held-out pair's margin in A against its margin in B, at the last common step."""
    pairs = comparison.a.heldout.pairs
    figure, axes = new_figure(1, width=5.6, height=max(4.2, legend_height(len(pairs.concepts))))
    axis = axes[0][0]
    a = comparison.a.heldout.margins[-1].double()
    b = comparison.b.heldout.margins[-1].double()
    for values, line in ((a, axis.axvline), (b, axis.axhline)):
        if float(values.min()) < 0 < float(values.max()):
            line(0, color=TRAIN, linewidth=0.8)
    rows = concept_rows(pairs)
    for concept, style in reversed(styles(pairs.concepts).items()):
        index = rows[concept]
        axis.scatter(a[index], b[index], s=14, color=style["color"], alpha=0.75, linewidths=0, label=style["label"])
    _label(axis, f"margin, {title_a}", f"margin, {title_b}")
    rho = comparison.heldout.spearman
    axis.set_title(f"Spearman {interval(rho.as_dict())}", fontsize=9, color=INK)
    _legend(figure, axis)
    return figure


def cosine_matrices(structure: Structure, side: str) -> Figure:
    """Average cosine between concepts, raw and centred, for one side or both."""
    title = f"{side.replace('_', '-')} statements"
    return cosine_panels(structure.concepts, structure.raw[side], structure.centred_[side], title)


def cosine_panels(concepts: Sequence[str], raw: Tensor, centred: Tensor, title: str) -> Figure:
    """Two (concepts, concepts) matrices of cosines between concepts side by side (Figures 1 and 3).

    More concepts than a screen has lines for are numbered, from 0, not named.
    """
    names = [short(name) for name in concepts]
    numbered = len(names) > MATRIX_NAMES
    size = 4.4 if numbered else max(3.4, 0.42 * len(names) + 1.6)
    figure, axes = new_figure(2, width=size + 0.8, height=size)
    panels = ((raw, "raw", "viridis", 0.0), (centred, "centred", "RdBu_r", -1.0))
    for column, (axis, (matrix, kind, colours, lowest)) in enumerate(zip(axes[0], panels, strict=True)):
        image = axis.imshow(matrix, cmap=colours, vmin=lowest, vmax=1.0)
        axis.grid(visible=False)
        if numbered:
            axis.set_xlabel(f"{len(names)} concepts, in order", fontsize=8, color=INK)
        else:
            axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
            axis.set_yticks(range(len(names)), names if column == 0 else [], fontsize=7)
        axis.set_title(f"{kind}, {title}", fontsize=9, color=INK)
        if len(names) <= 10:
            for i, row in enumerate(matrix.tolist()):
                for j, value in enumerate(row):
                    dark = value < 0.6 if lowest == 0.0 else abs(value) > 0.6
                    text = "-" if isnan(value) else f"{value:.2f}"
                    axis.text(j, i, text, ha="center", va="center", fontsize=6, color="w" if dark else INK)
        figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    return figure


def _label(axis: Axes, x: str, y: str, key: str = "") -> None:
    axis.set_xlabel(x, fontsize=9, color=INK)
    axis.set_ylabel(y, fontsize=9, color=INK)
    if "accuracies" in key:
        axis.set_ylim(-0.03, 1.03)


def finish_curves(axis: Axes, label: str, *, accuracy: bool) -> None:
    """Labels of curves against the step."""
    _label(axis, "step", label, "accuracies" if accuracy else "")


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    # Drawn last is meant first: the lines of all pairs lie on top and head the legend.
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=7.5, frameon=False, borderpad=1)
