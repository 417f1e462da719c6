"""What does a field say of itself? Help, range and choices, once, for the command line, YAML and Python alike."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from margincast.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
# Settings by name, as YAML and other programs have them, before a record checks them.
Settings = dict[str, Any]
INPUT, TRAINING, OUTPUT = "Input", "Training", "Output"


@dataclass(frozen=True)
class Option:
    """help: one line, where `{choices}` stands for them;  panel: of `--help`
    least, most: the range;  positive: above 0
    choices: what values there are, asked when they are needed;  open: they are not all, and who uses the value checks
    environment: the variable that gives the default;  setting: whether it decides a run's numbers
    """

    help: str
    panel: str = TRAINING
    least: float | None = None
    most: float | None = None
    positive: bool = False
    choices: Callable[[], Sequence[str]] | None = None
    open: bool = False
    environment: str | None = None
    setting: bool = True


def option(default: T, help: str, panel: str = TRAINING, **limits: Any) -> T:
    """A field with this default and `Option`."""
    described: T = field(default=default, metadata={"option": Option(help, panel, **limits)})
    return described


def options_of(kind: type[DataclassInstance]) -> dict[str, Option]:
    """By field, of those that are options."""
    return {each.name: each.metadata["option"] for each in fields(kind) if "option" in each.metadata}


@cache
def plain_types(kind: type[DataclassInstance]) -> dict[str, tuple[type, bool]]:
    """What a value of each option is: int, float, bool, str or Path, the first that its annotation names, and whether
    it may be None."""
    hints = get_type_hints(kind, localns=_later())
    found: dict[str, tuple[type, bool]] = {}
    for name in options_of(kind):
        hint = hints[name]
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        first = next(part for part in parts if part is not type(None))
        found[name] = str if get_origin(first) is Literal else first, type(None) in parts
    return found


def _later() -> dict[str, Any]:
    """Names that annotations use and that are imported for editors alone."""
    from margincast.recipe.loss import Loss
    from margincast.recipe.optimizer import Optimizer

    return {"Loss": Loss, "Optimizer": Optimizer}


def check_fields(record: DataclassInstance) -> None:
    """Raises `InputError` for values of a wrong type or out of range, all of them at once."""
    kinds = plain_types(type(record))
    said = [
        problem
        for name, each in options_of(type(record)).items()
        if (problem := _problem(name, getattr(record, name), each, *kinds[name]))
    ]
    if said:
        raise InputError("; ".join(said))


def _problem(name: str, value: Any, option: Option, kind: type, optional: bool) -> str | None:
    if value is None:
        return None if optional else f"{name} needs a value"
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
            return f"{name} must be {'a whole number' if kind is int else 'a number'}, got {_short(value)}"
        return _out_of_range(name, value, option)
    if kind is bool:
        return None if isinstance(value, bool) else f"{name} must be true or false, got {_short(value)}"
    if option.choices and not option.open and value not in option.choices():
        known = option.choices()
        return f"{name} {_short(value)} is not known; {near(value, known)}use one of: {', '.join(known)}"
    return None


def near(value: Any, known: Iterable[str]) -> str:
    """`did you mean X? ` for the known name nearest to `value`, or nothing."""
    found = difflib.get_close_matches(str(value), list(known), n=1)
    return f"did you mean {found[0]}? " if found else ""


def limit_of(text: str, given: str) -> float:
    """The number that a condition compares with. given: the condition, as a message calls it.

    Raises `InputError` for what is no number.
    """
    try:
        limit = float(text)
    except ValueError as error:
        raise InputError(f"{given}: {text} is not a number") from error
    if math.isnan(limit):
        raise InputError(f"{given}: nothing compares with nan")
    return limit


def _out_of_range(name: str, value: float, option: Option) -> str | None:
    if not math.isfinite(value) or (option.positive and value <= 0):
        return f"{name} must be a positive number, got {value:g}" if option.positive else f"{name} must be finite"
    if option.least is not None and value < option.least:
        return f"{name} must be at least {_number(option.least)}, got {_number(value)}"
    if option.most is not None and value > option.most:
        return f"{name} must be at most {_number(option.most)}, got {_number(value)}"
    return None


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
