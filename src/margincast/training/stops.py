"""When is a run to stop early? `--stop_if "effects/kl>0.5"`: at a recorded step whose metric is as it says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from margincast.errors import InputError
from margincast.recipe.fields import limit_of, near
from margincast.results import Json

_FORM = re.compile(r"\s*(?P<name>\S(?:.*\S)?)\s*(?P<relation>[<>])\s*(?P<limit>[^\s<>=]+)\s*", re.DOTALL)


@dataclass(frozen=True)
class Stop:
    """`text` as it was given: the metric `name` above or below `limit`."""

    text: str
    name: str
    above: bool
    limit: float

    def holds(self, row: Mapping[str, float]) -> bool:
        """Of a row of `metrics.jsonl`. What is no number any more is beyond every limit."""
        value = row[self.name]
        return math.isnan(value) or (value > self.limit if self.above else value < self.limit)

    def reason(self, row: Mapping[str, float]) -> str:
        return f"{self.name} is {row[self.name]:.4g} at step {row['step']:g}, and --stop_if says {self.text!r}"


def stops_of(texts: Sequence[str]) -> tuple[Stop, ...]:
    """What `--stop_if` was given. Raises `InputError` for a text that is no condition."""
    return tuple(_stop(text) for text in texts)


def _stop(text: str) -> Stop:
    parts = _FORM.fullmatch(text)
    if parts is None:
        raise InputError(f"--stop_if {text!r}: give a metric, > or <, and a number, like effects/kl>0.5")
    limit = limit_of(parts["limit"], f"--stop_if {text!r}")
    return Stop(text, parts["name"], parts["relation"] == ">", limit)


def check_names(stops: Iterable[Stop], recorded: Sequence[str]) -> None:
    """Raises `InputError` for a metric that is not among those `recorded`."""
    for each in stops:
        if each.name not in recorded:
            needs = "; effects/... are measured with --eval_data" if each.name.startswith("effects/") else ""
            few = ", ".join(recorded[:12]) + (", ..." if len(recorded) > 12 else "")
            raise InputError(
                f"--stop_if {each.text!r}: {each.name} is not recorded here; {near(each.name, recorded)}"
                f"there are {few}{needs}"
            )


def first_held(stops: Iterable[Stop], row: Mapping[str, float]) -> Stop | None:
    """The first condition that a row after step 0 meets."""
    return next((each for each in stops if row["step"] > 0 and each.holds(row)), None)


def stopped_at(stops: Iterable[Stop], row: Json, steps: int) -> Json:
    """The `stopped` of a summary's results, where the last recorded step, of `row`, is not that of a run of `steps`."""
    held = first_held(stops, row) if row["step"] < steps else None
    if held is None:
        return {}
    return {"stopped": {"step": row["step"], "stop_if": held.text, "reason": held.reason(row)}}
