"""How are the theorems' numbers shown? Their tables, in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from margincast.report.page import PageTable, Section
from margincast.report.tables import Rows, number

CONDITION_HEADER = ("form", "condition", "left", "right", "holds")
PROMISE_HEADER = ("form", "lower", "upper", "failure prob. <=", "verdict", "risk <=", "verdict")
TRADE_OFF_HEADER = ("failure prob.", "lower", "upper", "risk <=")
SMALLEST_HEADER = ("form", "v = 1/(4 sqrt Q): training", "risk", "this v and d: training", "risk")


def bound_tables(results: Mapping[str, Any]) -> list[PageTable]:
    """Of the `results` of `bounds`."""
    return [
        PageTable("Conditions", CONDITION_HEADER, _condition_rows(results)),
        PageTable(
            f"At tau_1 = {number(results['tau_1'])}: every training margin lies in [lower, upper]",
            PROMISE_HEADER,
            _promise_rows(results),
        ),
        PageTable("Explicit form, for an accepted probability of failure", TRADE_OFF_HEADER, _trade_off_rows(results)),
        PageTable("Smallest Q that says anything", SMALLEST_HEADER, _smallest_rows(results)),
    ]


def bound_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """The page of `bounds`."""
    return [
        Section(
            title="What the theorems promise",
            texts=[
                "Theorems 4.1 and 4.2 for one preference distribution: as printed, as it follows from the proof, and "
                "with explicit constants. A bound on a probability or a risk of 1 or more says nothing."
            ],
            tables=bound_tables(summary["results"]),
        )
    ]


def _condition_rows(results: Mapping[str, Any]) -> Rows:
    return [
        [line["form"], line["name"], number(line["left"]), number(line["right"]), "yes" if line["holds"] else "no"]
        for line in results["conditions"]
    ]


def _promise_rows(results: Mapping[str, Any]) -> Rows:
    def said(bound: Mapping[str, Any], form: str) -> list[str]:
        verdict = "says nothing" if bound["vacuous"][form] else "holds"
        return [power_of_ten(bound["log10"][form]), verdict]

    return [
        [
            form,
            number(envelope["lower"]),
            number(envelope["upper"]),
            *said(results["failure_probability"], form),
            *said(results["risk_bound"], form),
        ]
        for form, envelope in results["envelope_at_tau_1"]["forms"].items()
    ]


def _trade_off_rows(results: Mapping[str, Any]) -> Rows:
    return [
        [
            number(line["failure_probability"]),
            number(line["lower"], 4),
            number(line["upper"], 4),
            f"1e{line['log10_risk']:.1f}",
        ]
        for line in results["explicit_trade_off"]
        if line["lower"] is not None
    ]


def _smallest_rows(results: Mapping[str, Any]) -> Rows:
    smallest = results["smallest_Q"]
    return [
        [form, *(_count(smallest[where][form][what]) for where in smallest for what in ("training", "risk"))]
        for form in smallest["at_widest_noise"]
    ]


def power_of_ten(log10: float | None) -> str:
    """A bound given by its decimal logarithm, in powers of ten where floats would not do; `-` where it has none."""
    if log10 is None:
        return "-"
    return f"{10.0**log10:.3g}" if -20.0 < log10 * math.log(10.0) < 20.0 else f"1e{log10:.1f}"


def _count(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
