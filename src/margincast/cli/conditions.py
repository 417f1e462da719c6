"""Is a result bad enough to stop what called the command? `--fail-if "displacement>0.2"`: exit status 3.

A condition is a name, a relation and a limit. It is asked of the `results` of the summary, when all is written.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from margincast.errors import InputError
from margincast.recipe.fields import limit_of
from margincast.results import Json

RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(
    r"\s*(?P<name>[^\s<>=\[\]]+)\s*(?:\[(?P<concept>.+)\])?\s*(?P<relation>[<>]=?)\s*(?P<limit>[^\s<>=]+)\s*"
)
# Reads a number out of the results of a command; None where they have none.
Reader = Callable[[Json], Any]


class ConditionHolds(Exception):  # noqa: N818 (an answer, not a defect)
    """A result is as `--fail-if` says (exit status 3)."""


@dataclass(frozen=True)
class Condition:
    """`text` as it was given;  name: with its concept, if it has one"""

    text: str
    name: str
    concept: str | None
    relation: str
    limit: float
    read: Reader

    def holds(self, results: Json) -> str | None:
        """Why it holds, in words, or None. A result that is no number cannot be trusted to be good: it holds too."""
        value = self.read(results)
        if value is None or math.isnan(value):
            return f"{self.name} is not known, asked for by --fail-if {self.text!r}"
        if RELATIONS[self.relation](value, self.limit):
            return f"{self.name} is {value:.4g}, and --fail-if says {self.text!r}"
        return None


def conditions_of(texts: Sequence[str], command: str, config: Json) -> tuple[Condition, ...]:
    """What `--fail-if` was given, for `command` with the settings `config`.

    Raises `InputError` for a text that is no condition, and for a name that the results will not have.
    """
    if not texts:
        return ()
    plain, by_concept = names_of(command, config)
    return tuple(_condition(text, plain, by_concept) for text in texts)


def _condition(text: str, plain: Mapping[str, Reader], by_concept: tuple[str, ...]) -> Condition:
    parts = FORM.fullmatch(text)
    if parts is None:
        raise InputError(f"--fail-if {text!r}: give a name, one of < <= > >=, and a limit, like displacement>0.2")
    name, concept = parts["name"], parts["concept"]
    if name not in (by_concept if concept else plain):
        known = ", ".join([*plain, *(f"{each}[CONCEPT]" for each in by_concept)])
        raise InputError(f"--fail-if {text!r}: {_full(name, concept)} is not known here; use {known}")
    limit = limit_of(parts["limit"], f"--fail-if {text!r}")
    read = _of_concept(concept, name) if concept else plain[name]
    return Condition(text, _full(name, concept), concept, parts["relation"], limit, read)


def _full(name: str, concept: str | None) -> str:
    return f"{name}[{concept}]" if concept else name


def check_concepts(conditions: Iterable[Condition], concepts: Iterable[str]) -> None:
    """Raises `InputError` where a condition is of a concept that the data do not have."""
    known = tuple(concepts)
    for each in conditions:
        if each.concept is not None and each.concept not in known:
            raise InputError(f"--fail-if {each.text!r}: the data have no such concept; use {', '.join(known)}")


def check(conditions: Iterable[Condition], results: Json) -> None:
    """Raises `ConditionHolds` with every reason."""
    reasons = [reason for each in conditions if (reason := each.holds(results))]
    if reasons:
        raise ConditionHolds("; ".join(reasons))


def names_of(command: str, config: Json) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """The names that results of `command` with the settings `config` have, and those that each concept has."""
    if command == "attribute":
        return _of_attribution(), ()
    if command == "decompose":
        return (_OF_ALL, ()) if config["all"] else (_OF_PAIR, ())
    exact = {} if config["train"] != "head" else {name: _at("displacement", key) for name, key in _DISPLACEMENT.items()}
    return {**_OF_FORECAST, **exact}, ("heldout_margin", "heldout_accuracy")


def _of_attribution() -> dict[str, Reader]:
    """Held-out margin and accuracy, and by kind of issue the share of training pairs that are flagged."""
    from margincast.cli.attribute import issue_names

    heldout = {f"heldout_{key}": _at("heldout", key) for key in ("margin", "accuracy")}
    return {**heldout, **{kind: _share(kind) for kind in issue_names()}}


def _at(*keys: str) -> Reader:
    def read(results: Json) -> Any:
        value: Any = results
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return read


def _of_concept(concept: str, name: str) -> Reader:
    return _at("concepts", concept, name, "value")


def _share(kind: str) -> Reader:
    def read(results: Json) -> float:
        return float(results["suspects"]["counts"][kind] / results["suspects"]["pairs"])

    return read


def _heldout(name: str, metric: str) -> Reader:
    """Of a forecast that is not exact the middle of its interval, as its table shows it."""

    def read(results: Json) -> Any:
        return results[name][-1]["value"] if name in results else results["final"][metric]

    return read


def _falling(results: Json) -> float:
    splits = results["splits"].values()
    return float(sum(each["chosen_falls"] * each["pairs"] for each in splits) / sum(each["pairs"] for each in splits))


_DISPLACEMENT = {"displacement": "all", "train_displacement": "train", "heldout_displacement": "heldout"}
_OF_FORECAST: dict[str, Reader] = {
    "heldout_margin": _heldout("heldout_margin", "eval_rewards/margins"),
    "heldout_accuracy": _heldout("heldout_accuracy", "eval_rewards/accuracies"),
    "heldout_loss": _at("final", "eval_loss"),
    "train_margin": _at("final", "rewards/margins"),
    "train_accuracy": _at("final", "rewards/accuracies"),
    "loss": _at("final", "loss"),
}
_OF_ALL: dict[str, Reader] = {
    "displacement": _falling,
    "train_displacement": _at("splits", "train", "chosen_falls"),
    "heldout_displacement": _at("splits", "heldout", "chosen_falls"),
}
_OF_PAIR: dict[str, Reader] = {f"{side}_rate": _at("rates", side) for side in ("chosen", "rejected", "margin")}
