"""How is a verdict shown? The first lines of a forecast on the terminal, and the first section of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from margincast.report.page import Judged, PageTable, Section
from margincast.report.tables import Rows

EXPECTED_HEADER = ("held-out", "n", "accuracy [95%]", "chance: 50%", "would tell")


def verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    """`results.verdict`: the decision, its reasons and, of a sweep, which value is best."""
    reasons = [f"  {reason['decision']:<8} {reason['says']}" for reason in verdict["reasons"]]
    sweep = [f"  sweep    {verdict['sweep']['says']}"] if "sweep" in verdict else []
    return [f"Verdict: {verdict['decision'].upper()}", *reasons, *sweep, ""]


def verdict_sections(results: Mapping[str, Any]) -> list[Section]:
    """The verdict of a forecast; nothing for a training run, or a forecast of before there were any."""
    if "verdict" not in results:
        return []
    verdict = results["verdict"]
    reasons = [(reason["decision"], reason["says"]) for reason in verdict["reasons"]]
    sweep = [("sweep", verdict["sweep"]["says"])] if "sweep" in verdict else []
    caption = (
        "What to expect of more pairs like these: intervals hold the forecast's own error, and that so few are held "
        "out. Would tell: how many held-out pairs."
    )
    rows = expected_rows(verdict)
    columns = len(EXPECTED_HEADER) if any(row[-1] for row in rows) else len(EXPECTED_HEADER) - 1
    return [
        Section(
            title="Verdict",
            judged=Judged(verdict["decision"], [*reasons, *sweep]),
            tables=[PageTable(caption, EXPECTED_HEADER[:columns], [row[:columns] for row in rows])],
        )
    ]


def expected_rows(verdict: Mapping[str, Any]) -> Rows:
    """All held-out pairs, then every concept, the best first."""
    return [
        [
            name,
            str(row["pairs"]),
            f"{row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}]",
            row["standing"],
            str(row["needed"]) if row["needed"] is not None and row["standing"] == "not shown" else "",
        ]
        for name, row in {"all": verdict["accuracy"], **verdict["concepts"]}.items()
    ]
