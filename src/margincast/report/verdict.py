"""How is a verdict shown? The first lines of a forecast on the terminal, and the first section of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from margincast.report.page import Judged, PageTable, Section
from margincast.report.tables import Rows

EXPECTED_HEADER = ("held-out", "n", "accuracy [95%]", "chance: 50%")


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
    about = "What to expect of more such pairs: intervals hold the forecast's error, and that so few are held out."
    return [
        Section(
            title="Verdict",
            judged=Judged(verdict["decision"], [*reasons, *sweep]),
            texts=[about],
            tables=[PageTable("Held-out pairs at the last step", EXPECTED_HEADER, expected_rows(verdict))],
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
        ]
        for name, row in {"all": verdict["accuracy"], **verdict["concepts"]}.items()
    ]
