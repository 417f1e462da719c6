"""How is a selection shown? Rules side by side, each against random parts, and the curves of the budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.report.figures import HELDOUT, INK, QUIET, TRAIN, new_figure, short, styles
from margincast.report.page import PageFigure, PageTable, Section
from margincast.report.tables import Rows, interval, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RULE_HEADER = ("rule", "held-out accuracy [95%]", "points over random [95%, all rules]", "held-out margin [95%]")
MEANING_HEADER = ("rule", "keeps")
CONCEPT_RULES = 6  # on the page: the best of them
MARK = " *"


def ordered(results: Mapping[str, Any]) -> list[str]:
    """The rules, the best first."""
    rules = results["rules"]
    return sorted(rules, key=lambda name: (-rules[name]["accuracy"]["value"], -rules[name]["margin"]["value"]))


def rule_rows(results: Mapping[str, Any]) -> Rows:
    """Of `results` of a selection; the picked rule has a mark."""
    rows = []
    for name in ordered(results):
        rule = results["rules"][name]
        mark = MARK if name == results["picked"] else ""
        over = "-" if name == "random" else _points(rule["over_random"])
        rows.append([f"{name}{mark}", percent_fine(rule["accuracy"]), over, interval(rule["margin"])])
    whole = results["all_pairs"]
    rows.append(["all pairs", percent_fine(whole["accuracy"]), "-", interval(whole["margin"])])
    return rows


def percent_fine(estimate: Mapping[str, float | None]) -> str:
    """A share to a tenth of a percent: rules lie that close."""
    if estimate["low"] is None or estimate["low"] != estimate["low"]:
        return percent(estimate)
    return f"{estimate['value']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}]"


def _points(gain: Mapping[str, float | None]) -> str:
    value, low, high = (gain[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None or low != low:
        return "-"
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def concept_header(results: Mapping[str, Any]) -> tuple[str, ...]:
    return ("concept", *ordered(results)[:CONCEPT_RULES])


def concept_rows(results: Mapping[str, Any]) -> Rows:
    """Held-out accuracy of every concept by the best rules."""
    shown = [results["rules"][name]["concepts"] for name in ordered(results)[:CONCEPT_RULES]]
    return [[concept, *(percent_fine(each[concept]["accuracy"]) for each in shown)] for concept in shown[0]]


def curve_header(budget: Mapping[str, Any]) -> tuple[str, ...]:
    return ("rule", *(f"{size} pairs" for size in budget["sizes"]), "flat from")


def curve_rows(budget: Mapping[str, Any]) -> Rows:
    return [
        [name, *(f"{each['value']:.1%}" for each in curve), str(budget["flat_from"][name])]
        for name, curve in budget["curves"].items()
    ]


HALF_HEADER = ("concept", "pairs left out", "points they add to all [95%]", "to the concept [95%]")


def half_rows(budget: Mapping[str, Any]) -> Rows:
    return [
        [name, str(half["pairs"]), _points(half["target"]), "-" if half["own"] is None else _points(half["own"])]
        for name, half in budget["concepts"].items()
    ]


def rules_figure(results: Mapping[str, Any]) -> Figure:
    """Every rule's forecast accuracy beside that of random parts, whose noise of choosing is the band."""
    names = ordered(results)[::-1]
    figure, axes = new_figure(1, width=6.4, height=max(2.4, 0.28 * len(names) + 1.0))
    axis = axes[0][0]
    random = results["rules"]["random"]["accuracy"]["value"]
    axis.axvline(random, color=TRAIN, linewidth=1.0, label="mean of random parts")
    axis.axvline(
        results["all_pairs"]["accuracy"]["value"], color=INK, linewidth=1.0, linestyle=(0, (3, 2)), label="all pairs"
    )
    for place, name in enumerate(names):
        rule = results["rules"][name]
        gain, colour = rule["over_random"], HELDOUT if name == results["picked"] else "#0072b2"
        if name != "random" and gain["low"] == gain["low"]:
            ends = [random + gain["low"], random + gain["high"]]
            axis.plot(ends, [place, place], color=QUIET, linewidth=6, solid_capstyle="butt", zorder=1)
        axis.plot(rule["accuracy"]["value"], place, "o", color=colour, markersize=6)
    axis.set_yticks(range(len(names)), [short(name) for name in names])
    axis.set_xlabel("forecast held-out accuracy", fontsize=9, color=INK)
    axis.legend(fontsize=7.5, frameon=False, loc="best")
    return figure


def curve_figure(budget: Mapping[str, Any]) -> Figure:
    """Held-out accuracy against the number of pairs, by rule."""
    figure, axes = new_figure(1, width=6.4, height=3.6)
    axis = axes[0][0]
    names = list(budget["curves"])
    for name, style in styles(names).items():
        values = [each["value"] for each in budget["curves"][name]]
        axis.plot(
            budget["sizes"], values, marker="o", markersize=3, linewidth=2.4 if name == names[0] else 1.2, **style
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(budget["sizes"], [str(size) for size in budget["sizes"]])
    axis.minorticks_off()
    axis.set_xlabel("training pairs", fontsize=9, color=INK)
    axis.set_ylabel("forecast held-out accuracy", fontsize=9, color=INK)
    figure.legend(loc="outside right upper", fontsize=7.5, frameon=False)
    return figure


def selection_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    results = summary["results"]
    sections = [
        Section(
            title="Which pairs to train on",
            texts=[
                f"Each rule keeps {results['size']} of {results['pairs']} training pairs; the run on them is forecast "
                "exactly, of training the unembedding on a frozen backbone. No statement about a moving backbone."
            ],
            reading=results["advice"],
            figures=[
                PageFigure(
                    folder / "figures" / "rules.svg",
                    "Forecast held-out accuracy by rule. Bars: 95% interval of the difference from random parts, for "
                    "all rules at once, with the noise of choosing. Red: the rule that is picked.",
                )
            ],
            tables=[
                PageTable("Rules, the best first; * is picked", RULE_HEADER, rule_rows(results)),
                PageTable("Held-out accuracy by concept", concept_header(results), concept_rows(results)),
                PageTable(
                    "What the rules keep",
                    MEANING_HEADER,
                    [[name, results["rules"][name]["meaning"]] for name in ordered(results)],
                    text=True,
                ),
            ],
        )
    ]
    return [*sections, *([_budget_section(folder, results["budget"])] if results["budget"] else [])]


def _budget_section(folder: Path, budget: Mapping[str, Any]) -> Section:
    halves = half_rows(budget)
    return Section(
        title="How many pairs are enough",
        texts=["A curve is flat from the smallest size that no larger one is better than, beyond noise."],
        figures=[PageFigure(folder / "figures" / "curve.svg", "Forecast held-out accuracy by number of pairs")],
        tables=[
            PageTable("Held-out accuracy by number of pairs", curve_header(budget), curve_rows(budget)),
            *([PageTable("What half of a concept's pairs adds", HALF_HEADER, halves)] if halves else []),
        ],
    )
