"""What does a fitted forecast know, of which model, from which runs, and how far did it miss them? One small file.

calibration_for("my-model.json", features, recipe, cache_dir)     # or None: the nearest that there is
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from margincast.errors import InputError
from margincast.models.kind import ModelKind
from margincast.models.place import default_cache_dir
from margincast.results import Json
from margincast.runs.store import write_json
from margincast.trained.constants import Constants, package_constants, parsed

SCHEMA = 2  # of the file; 1 is a file of constants alone, which is read too
RANGES = ("response_tokens", "learning_rate", "steps", "batch", "beta", "rank")


@dataclass(frozen=True)
class World:
    """What the runs behind a calibration were: model and settings, each as the smallest and the largest.

    model_hash: "" where it is not known;  kind: None where it is not;  rank: of LoRA, None where no run was of it
    """

    model: str
    model_hash: str
    kind: ModelKind | None
    losses: tuple[str, ...]
    response_tokens: tuple[float, float] | None = None
    learning_rate: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None
    batch: tuple[float, float] | None = None
    beta: tuple[float, float] | None = None
    rank: tuple[float, float] | None = None


@dataclass(frozen=True)
class Calibration:
    """Constants of fitted forecasts, and where they hold.

    name: what a forecast calls it;  error: of forecasts of runs that the constants did not know, {} where it is not
    known (`calibrate` has its keys)
    """

    constants: Constants
    world: World
    error: Json
    name: str = "calibration"

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file, which `forecast(..., calibration=path)` reads."""
        constants, world = asdict(self.constants), asdict(self.world)
        write_json(Path(path), {"schema_version": SCHEMA, "constants": constants, "world": world, "error": self.error})

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """The calibration in a file, or constants that `Constants.save` wrote, of a world that is not known.

        Raises `InputError` for a file that is neither, in one line that says what is wrong.
        """
        where = f"calibration {path}"
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{where}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {error}") from error
        return _of_values(values, where, str(path))


def _of_values(values: Any, where: str, name: str) -> Calibration:
    if not isinstance(values, Mapping) or values.get("schema_version") != SCHEMA:
        if not isinstance(values, Mapping) or values.get("schema_version") != 1:
            raise InputError(f"{where}: not of schema {SCHEMA}, as `margincast calibrate` writes it")
        return Calibration(parsed(values, where), World("another model", "", None, ()), {}, name)
    if set(values) != {"schema_version", "constants", "world", "error"} or not isinstance(values["error"], Mapping):
        raise InputError(f"{where}: has {', '.join(sorted(values))}, not constants, world and error")
    constants = values["constants"]
    if not isinstance(constants, Mapping):
        raise InputError(f"{where}: constants is no record")
    return Calibration(
        parsed({"schema_version": 1, **constants}, where), _world(values["world"], where), dict(values["error"]), name
    )


def _world(values: Any, where: str) -> World:
    if not isinstance(values, Mapping) or set(values) != {each.name for each in fields(World)}:
        raise InputError(f"{where}: world has {', '.join(each.name for each in fields(World))}")
    found = dict(values)
    for name in RANGES:
        ends = found[name]
        if ends is not None:
            if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, (int, float)) for end in ends):
                raise InputError(f"{where}: world.{name} is no smallest and largest, got {ends!r}")
            found[name] = (float(ends[0]), float(ends[1]))
    kind, losses = found["kind"], found["losses"]
    known = {each.name for each in fields(ModelKind)}
    if kind is not None and (not isinstance(kind, Mapping) or set(kind) != known):
        raise InputError(f"{where}: world.kind has {', '.join(sorted(known))}")
    if not isinstance(losses, list) or not all(isinstance(found[name], str) for name in ("model", "model_hash")):
        raise InputError(f"{where}: world.model, model_hash are text, and losses is a list")
    if kind is not None:
        if not all(isinstance(kind[name], int) and kind[name] > 0 for name in ("weights", "layers", "width")):
            raise InputError(f"{where}: world.kind has positive weights, layers and width")
        found["kind"] = ModelKind(**kind)
    return World(**found | {"losses": tuple(map(str, losses))})


@cache
def package_calibration() -> Calibration:
    """That of SmolLM2-135M on persona questions."""
    values = json.loads(files("margincast.trained").joinpath("world.json").read_text("utf-8"))
    world = _world(values["world"], "the world of the package")
    return Calibration(package_constants(), world, values["error"], "package")


Given = Calibration | Constants | str | Path | None


def calibration_of(given: Given, model_hash: str, kind: ModelKind | None, cache_dir: Path | None = None) -> Calibration:
    """`given`, read where it is a file. None: the nearest that there is: made of this very model and kept in the cache,
    else of its family and nearest in size, else that of the package.

    Raises `InputError` for a file that is none.
    """
    if isinstance(given, Calibration):
        return given
    if isinstance(given, Constants):
        return Calibration(given, World("another model", "", None, ()), {}, "given constants")
    if given is not None:
        return Calibration.read(given)
    kept = folder_of(default_cache_dir() if cache_dir is None else cache_dir)
    if not kept.is_dir():
        return package_calibration()
    same = kept / f"{model_hash}.json"
    if same.is_file():
        return Calibration.read(same)
    package = package_calibration()
    others = [package, *(Calibration.read(path) for path in sorted(kept.glob("*.json")))]
    related = [(size_gap(kind, one.world.kind), number) for number, one in enumerate(others)]
    gap, number = min(related)
    return others[number] if gap < float("inf") else package


def folder_of(cache_dir: Path) -> Path:
    """Where calibrations are kept, each under its model's hash."""
    return cache_dir / "calibrations"


def size_gap(one: ModelKind | None, other: ModelKind | None) -> float:
    """The ratio of the numbers of weights, 1 or more; infinite for other families, and where a kind is not known."""
    if one is None or other is None or one.family != other.family:
        return float("inf")
    return max(one.weights, other.weights) / min(one.weights, other.weights)
