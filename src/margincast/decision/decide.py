"""The verdict on a forecast: all rules, the severest decides; and which value of a swept setting is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from margincast.decision.evidence import Evidence, Expected
from margincast.decision.rules import CAUTION, GO, RULES, STOP, Reason, standing
from margincast.records import Trajectory
from margincast.results import Json

SEVERITY = (STOP, CAUTION, GO)


@dataclass(frozen=True)
class Verdict:
    """decision: go, caution or stop, the severest of the reasons, which come in that order

    overall, concepts: expected held-out accuracy, of all pairs and, best first, of concepts where there are several
    """

    decision: str
    reasons: tuple[Reason, ...]
    overall: Expected
    concepts: Mapping[str, Expected]

    def as_dict(self) -> Json:
        """`results.verdict` of a forecast."""

        def plain(expected: Expected) -> Json:
            numbers = {name: getattr(expected, name) for name in ("value", "low", "high", "pairs", "needed")}
            return {**numbers, "standing": standing(expected)}

        return {
            "decision": self.decision,
            "reasons": [asdict(reason) for reason in self.reasons],
            "accuracy": plain(self.overall),
            "concepts": {name: plain(each) for name, each in self.concepts.items()},
        }


def verdict(forecast: Trajectory, length: Mapping[str, Any] | None = None) -> Verdict:
    """Whether to train as `forecast` has it, with the reasons. Rules and thresholds: docs/verdict.md.

    length: `results.length` of a forecast of responses of many tokens, where there is one
    """
    evidence = Evidence(forecast, length)
    rules = RULES[:1] if evidence.diverged else RULES  # the others' numbers are none
    reasons = [reason for rule in rules for reason in rule(evidence)]
    reasons.sort(key=lambda reason: SEVERITY.index(reason.decision))
    return Verdict(reasons[0].decision, tuple(reasons), evidence.overall, evidence.concepts)


def best_of(name: str, rows: Sequence[Mapping[str, Any]]) -> Json:
    """Which value of the setting `name` is best, by the rows of `results.sweep`: held-out accuracy at the end.

    beyond_noise: whether its 90% interval is above those of all others;  level_with: values whose intervals overlap its
    """
    best = max(rows, key=lambda row: row["heldout_accuracy"]["value"])
    low = best["heldout_accuracy"]["low"]
    level = [row[name] for row in rows if row is not best and row["heldout_accuracy"]["high"] >= low]
    worse = [row[name] for row in rows if row is not best and row[name] not in level]
    top = f"{name} {best[name]:g} is expected to give {_shown(best['heldout_accuracy'])}"
    if len(rows) == 1:
        text = f"{top}; there is no other value to compare."
    elif not level:
        text = f"Best of {len(rows)}: {top}, above all others by more than the forecast's error."
    elif not worse:
        values = ", ".join(f"{row[name]:g}" for row in rows)
        text = f"No difference shown between {name} {values}: their intervals overlap ({top})."
    else:
        text = (
            f"{top}; no difference shown to {', '.join(f'{value:g}' for value in level)}, and better than "
            f"{', '.join(f'{value:g}' for value in worse)}."
        )
    beyond = [f"{row[name]:g}" for row in rows if row["beyond"]]
    if beyond:
        text += f" No run behind the forecast went as far as with {', '.join(beyond)}, or as little."
    return {
        "setting": name,
        "best": best[name],
        "beyond_noise": bool(len(rows) > 1 and not level),
        "level_with": level,
        "says": text,
    }


def _shown(accuracy: Mapping[str, float]) -> str:
    return f"{accuracy['value']:.0%} (90%: {accuracy['low']:.0%} to {accuracy['high']:.0%})"
