"""How are decompositions and displacement shown? A figure of pushes, text coloured by token, and their sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.report.figures import HELDOUT, INK, TRAIN, new_figure, short
from margincast.report.page import Colour, ColouredText, PageFigure, PageTable, Section
from margincast.report.tables import Rows, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTORS = {"cooccurrence": "same token", "probability": "probability", "correlation": "correlation"}
FACTOR_COLOURS = ("#0072b2", "#e69f00", "#009e73")
TOKEN_HEADER = ("training token", "side", "times", *FACTORS.values(), "total")
PAIR_HEADER = ("training pair", "chosen", "rejected", "margin")
DISPLACEMENT_HEADER = ("", "pairs", "chosen falls", "at the start", "rejected falls", "mean change, chosen", "rejected")
BLAME_HEADER = ("training pair", "adds to d/dt", "its own chosen, forecast")
BLAME_TOKEN_HEADER = ("training token", "side", "times", "adds to d/dt")


def visible(text: str) -> str:
    """A token as a label: white space shown."""
    return text.replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5")


def token_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    return [
        [visible(row["text"]), row["side"], str(row["times"]), *(number(row[name]) for name in (*FACTORS, "total"))]
        for row in rows
    ]


def pair_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    return [[row["id"], *(number(row[name]) for name in ("chosen", "rejected", "margin"))] for row in rows]


def displacement_rows(results: Mapping[str, Any]) -> Rows:
    return [
        [
            {"train": "training", "heldout": "held-out"}[name],
            str(row["pairs"]),
            f"{row['chosen_falls']:.0%}",
            f"{row['chosen_falls_at_start']:.0%}",
            f"{row['rejected_falls']:.0%}",
            number(row["mean_delta_chosen"]),
            number(row["mean_delta_rejected"]),
        ]
        for name, row in results["splits"].items()
    ]


def blame_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    return [[row["id"], number(row["blame"]), number(row["forecast_delta_logp_chosen"])] for row in rows]


def blame_token_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    return [[visible(row["text"]), row["side"], str(row["times"]), number(row["blame"])] for row in rows]


def pushes(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The training tokens that push each response of a pair most: stacked factors, their sum as a dot."""
    height = max(3.2, 0.26 * max(map(len, rows.values())) + 1.2)
    figure, axes = new_figure(2, width=5.4, height=height)
    for axis, (side, tokens) in zip(axes[0], rows.items(), strict=True):
        places = range(len(tokens))
        for sign in (1, -1):
            left = [0.0] * len(tokens)
            for (name, label), colour in zip(FACTORS.items(), FACTOR_COLOURS, strict=True):
                values = [max(sign * row[name], 0.0) * sign for row in tokens]
                axis.barh(places, values, left=left, color=colour, height=0.7, label=label if sign > 0 else None)
                left = [a + b for a, b in zip(left, values, strict=True)]
        axis.plot([row["total"] for row in tokens], places, "o", color=INK, markersize=4, label="total")
        axis.axvline(0, color=TRAIN, linewidth=0.8)
        names = [f"{short(visible(row['text']))} in {row['side']}, {row['times']}x" for row in tokens]
        axis.set_yticks(places, names, fontsize=7)
        axis.invert_yaxis()
        axis.set_title(f"on the {side} response", fontsize=9, color=INK)
        axis.set_xlabel("rate of the reward", fontsize=9, color=INK)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def displaced(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Forecast change of log pi of every pair's responses: below the horizontal line the chosen one loses."""
    figure, axes = new_figure(1, width=5.2, height=4.4)
    axis = axes[0][0]
    for split, colour, label in (("train", TRAIN, "training"), ("heldout", HELDOUT, "held-out")):
        mine = [row for row in rows if row["split"] == split]
        x, y = ([row[f"forecast_delta_logp_{side}"] for row in mine] for side in ("rejected", "chosen"))
        axis.scatter(x, y, s=12, color=colour, alpha=0.7, linewidths=0, label=label)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.axline((0, 0), slope=1, color=TRAIN, linewidth=0.8, linestyle=(0, (3, 2)))
    axis.set_xlabel("change of log pi(rejected)", fontsize=9, color=INK)
    axis.set_ylabel("change of log pi(chosen)", fontsize=9, color=INK)
    axis.legend(fontsize=8, frameon=False)
    return figure


def coloured(caption: str, tokens: Sequence[Mapping[str, Any]], largest: float) -> ColouredText:
    """Tokens coloured by their total, the strongest colour at `largest`."""
    words = []
    for token in tokens:
        strength = min(1.0, abs(token["total"]) / largest) if largest else 0.0
        parts = [f"{label} {number(token[name])}" for name, label in FACTORS.items() if name in token]
        before = [f"reward before training {number(token['start'])}"] if token.get("start") else []
        title = ", ".join([*parts, f"total {number(token['total'])}", *before])
        words.append(Colour(token["text"], "up" if token["total"] > 0 else "down", round(0.75 * strength, 3), title))
    return ColouredText(caption, words)


def pair_sections(folder: Path, results: Mapping[str, Any]) -> list[Section]:
    tokens = results["tokens"]
    largest = max((abs(token["total"]) for side in tokens.values() for token in side), default=0.0)
    texts = [coloured(f"The {side} response of {results['pair']}", tokens[side], largest) for side in tokens]
    trained = results["training_pairs"]
    strongest = max((abs(t["total"]) for row in trained for side in row["tokens"].values() for t in side), default=0.0)
    sources = [
        coloured(
            f"{row['id']}, {side}: what it adds to the margin of {results['pair']}", row["tokens"][side], strongest
        )
        for row in (*trained[:2], *trained[-2:])
        for side in row["tokens"]
    ]
    rates = results["rates"]
    return [
        Section(
            title=f"What moves the rewards of {results['pair']}",
            texts=[
                "Rates at the start of training the unembedding on the training pairs, per unit of time t = learning "
                "rate x steps of gradient flow. Blue tokens gain reward, orange ones lose it; point at one for its "
                "factors."
            ],
            reading=[
                f"The reward of the chosen response {'rises' if rates['chosen'] > 0 else 'falls'} at "
                f"{number(rates['chosen'])}, that of the rejected one {'rises' if rates['rejected'] > 0 else 'falls'} "
                f"at {number(rates['rejected'])}, so the margin "
                f"{'grows' if rates['chosen'] > rates['rejected'] else 'shrinks'}.",
                *read_start(results),
            ],
            coloured=texts,
            figures=[PageFigure(folder / "figures" / "pushes.svg", "Training tokens that push most, by factor.")],
            tables=[
                PageTable(f"Training tokens that push the {side} response", TOKEN_HEADER, token_rows(rows))
                for side, rows in results["training_tokens"].items()
            ],
        ),
        Section(
            title="Training pairs behind it",
            tables=[PageTable("Rates that single training pairs add", PAIR_HEADER, pair_rows(trained))],
            coloured=sources,
        ),
    ]


def read_start(results: Mapping[str, Any]) -> list[str]:
    """Where the rewards are before training, in a sentence; none where they are at 0."""
    start = results.get("start")  # which a run of an earlier version does not have
    if not start or not (start["chosen"] or start["rejected"]):
        return []
    return [
        f"Before training the reward of the chosen response is {number(start['chosen'])}, that of the rejected one "
        f"{number(start['rejected'])}, the margin {number(start['margin'])}."
    ]


def displacement_sections(folder: Path, results: Mapping[str, Any]) -> list[Section]:
    return [
        Section(
            title="Whose likelihood falls",
            texts=[f"This is a {results['origin']}."],
            reading=[read_displacement(results)],
            figures=[
                PageFigure(
                    folder / "figures" / "displacement.svg",
                    "Every pair. Below the horizontal line its chosen response becomes less likely; above the dashed "
                    "line its margin grows all the same.",
                )
            ],
            tables=[
                PageTable("Changes of log pi over the run", DISPLACEMENT_HEADER, displacement_rows(results)),
                PageTable(
                    "Training pairs that push the falling chosen responses down most, at the start",
                    BLAME_HEADER,
                    blame_rows(results["worst_pairs"]),
                ),
                PageTable(
                    "Training tokens that do, all their places together",
                    BLAME_TOKEN_HEADER,
                    blame_token_rows(results["worst_tokens"]),
                ),
            ],
        )
    ]


def read_displacement(results: Mapping[str, Any]) -> str:
    """The result in a sentence."""
    train, heldout = (results["splits"][name] for name in ("train", "heldout"))
    return (
        f"Over this run the chosen response becomes less likely for {train['chosen_falls']:.0%} of the training pairs "
        f"and {heldout['chosen_falls']:.0%} of the held-out pairs."
    )


def decomposition_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """The page of `decompose`, of either kind."""
    results = summary["results"]
    return pair_sections(folder, results) if "pair" in results else displacement_sections(folder, results)
