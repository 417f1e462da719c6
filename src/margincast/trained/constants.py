"""Which constants does a fitted forecast use? Those of the package, or of a file, or those that `fit_constants` gave.

    Constants.read("my-model.json").laws(with_rehearsal=True)

The file is JSON with a key for every field of the records below; other keys and numbers out of range are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from margincast.errors import InputError
from margincast.runs.store import write_json
from margincast.trained.laws import Laws

T = TypeVar("T")
VERSION = 1  # of the file
KINDS = {"all": "all weights", "lora": "a LoRA adapter"}
POSITIVE = ("scale", "adapter", "ridge", "order_nats", "accuracy_nats")
ANY_SIGN = ("length", "pairs", "spread", "power", "slowing", "alpha", "rise", "pair_slope")


@dataclass(frozen=True)
class Constants:
    """The constants of forecasts that are not exact.

    fitted_on: in words, the runs that they are from
    paths: for "all" weights and "lora", the shortest and the longest path (sum of learning rates) of those runs; a kind
    of training that is not there is not forecast
    from_features: the laws of forecasts from features alone
    from_rehearsal: those of forecasts beside a rehearsal, None where the runs had none
    """

    fitted_on: str
    paths: Mapping[str, tuple[float, float]]
    from_features: Laws
    from_rehearsal: Laws | None

    def laws(self, with_rehearsal: bool) -> Laws:
        """The laws of a forecast. Raises `InputError` for one with a rehearsal where the runs had none."""
        if not with_rehearsal:
            return self.from_features
        if self.from_rehearsal is None:
            raise InputError(
                f"the constants from {self.fitted_on} were fitted without rehearsals: forecast without one, or fit "
                "constants on runs that were rehearsed"
            )
        return self.from_rehearsal

    def tested(self, lora: bool) -> tuple[float, float]:
        """The shortest and the longest path of the runs behind the constants. Raises `InputError` where none is."""
        kind = "lora" if lora else "all"
        if kind not in self.paths:
            raise InputError(f"the constants from {self.fitted_on} know no run that trained {KINDS[kind]}")
        return self.paths[kind]

    def save(self, path: str | Path) -> None:
        """Write them to a JSON file, which `forecast(..., constants=path)` reads."""
        write_json(Path(path), {"schema_version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, path: str | Path) -> Constants:
        """The constants in a file. Raises `InputError` for a file that is none, in one line that says what is wrong."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"constants {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"constants {path}: not JSON: {error}") from error
        return parsed(values, f"constants {path}")


@cache
def package_constants() -> Constants:
    """Those of SmolLM2-135M on persona questions."""
    path = files("margincast.trained").joinpath("constants.json")
    return parsed(json.loads(path.read_text("utf-8")), "the constants of the package")


def parsed(values: Any, where: str) -> Constants:
    """The constants in what JSON gave. Raises `InputError`, which begins with `where`."""
    if not isinstance(values, Mapping) or values.get("schema_version") != VERSION:
        raise InputError(f"{where}: not constants of schema {VERSION}, as `fit_constants(...).save` writes them")
    rest = {name: value for name, value in values.items() if name not in ("schema_version", "fitted_on", "paths")}
    paths = values.get("paths")
    if not isinstance(values.get("fitted_on"), str):
        raise InputError(f"{where}: fitted_on says no runs")
    if not isinstance(paths, Mapping) or not paths or not set(paths) <= set(KINDS):
        raise InputError(f"{where}: paths has {', '.join(KINDS)} or one of them")
    for kind, ends in paths.items():
        numbers = isinstance(ends, (list, tuple)) and len(ends) == 2 and all(map(_number, ends))
        if not numbers or not 0 < ends[0] <= ends[1]:
            raise InputError(f"{where}: paths.{kind} is not a shortest and a longest path, got {ends!r}")
    if set(rest) != {"from_features", "from_rehearsal"}:
        raise InputError(f"{where}: has {', '.join(sorted(rest)) or 'no laws'}, not from_features and from_rehearsal")
    alone, beside = rest["from_features"], rest["from_rehearsal"]
    laws = record_of(Laws, alone, f"{where}: from_features")
    with_rehearsal = None if beside is None else record_of(Laws, beside, f"{where}: from_rehearsal")
    if laws.rehearsal is not None or (with_rehearsal is not None and with_rehearsal.rehearsal is None):
        raise InputError(f"{where}: from_rehearsal, and it alone, has constants of a rehearsal")
    ends_of = {kind: (float(ends[0]), float(ends[1])) for kind, ends in paths.items()}
    return Constants(values["fitted_on"], ends_of, laws, with_rehearsal)


def record_of(kind: type[T], values: Any, where: str) -> T:
    """`values`, as `dataclasses.asdict` writes them, as a record again.

    Raises `InputError`, which begins with `where`.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is no record, got {values!r}")
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    wrong = [f"{name} is missing" for name in sorted(names - set(values))]
    wrong += [f"{name} is unknown" for name in sorted(set(values) - names)]
    if wrong:
        raise InputError(f"{where}: {', '.join(wrong)}")
    hints, found = get_type_hints(kind), dict[str, Any]()
    for name, value in values.items():
        inner = next((each for each in (hints[name], *get_args(hints[name])) if is_dataclass(each)), None)
        if inner is None:
            found[name] = _checked(name, value, where)
        else:
            optional = value is None and type(None) in get_args(hints[name])
            found[name] = None if optional else record_of(inner, value, f"{where}.{name}")  # type: ignore[arg-type]
    return kind(**found)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _checked(name: str, value: Any, where: str) -> float:
    if not _number(value):
        raise InputError(f"{where}.{name} is no finite number, got {value!r}")
    if (name in POSITIVE and value <= 0) or (name not in ANY_SIGN and value < 0):
        raise InputError(f"{where}.{name} is {'not positive' if name in POSITIVE else 'negative'}, got {value}")
    if name == "accuracy_correlation" and value > 1:
        raise InputError(f"{where}.{name} is a correlation of at most 1, got {value}")
    return float(value)
