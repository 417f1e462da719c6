"""Where is the model that a name means? A folder, a GGUF file, a LoRA adapter on top of another model, or a Hub id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from margincast.errors import InputError, StatedFailure
from margincast.hub import cache_where_unreachable
from margincast.models.gguf import gguf_folder
from margincast.models.smollm2 import smollm2_folder
from margincast.models.tiny import tiny_folder
from margincast.processes import by_first

# Makes a folder below a cache.
MADE: dict[str, Callable[[Path], Path]] = {"smollm2": smollm2_folder, "tiny": tiny_folder}
CONFIG, ADAPTER = "config.json", "adapter_config.json"


@dataclass(frozen=True)
class Place:
    """base: folder or Hub id of the whole model;  adapter: of a LoRA adapter on top of it, if any"""

    base: str
    adapter: str | None = None


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "margincast"


def locate(name: str, cache_dir: Path | None = None, revision: str | None = None) -> Place:
    """Where `name` is. The default model, the tiny one and a GGUF file become folders in the cache first.

    Raises `InputError` when `name` is a path that holds no model, and for a `revision` of what is not on the Hub.
    """
    cache = cache_dir or default_cache_dir()
    path = Path(name).expanduser()
    made = partial(gguf_folder, path) if path.suffix.lower() == ".gguf" and path.is_file() else MADE.get(name)
    local = made is not None or (bool(name.strip()) and path.is_dir())
    if revision is not None and local:
        raise InputError(f"--revision {revision} names a version on the Hub, and the model {name!r} is not there")
    if made is not None:
        # Of several processes transformers lets the first alone write a model.
        folder = by_first(lambda: str(made(cache)))
        with suppress(OSError):  # a cache that may only be read
            Path(folder).touch()  # used again: the least recently used go first
        return Place(folder)
    if local:
        return _in_folder(path, name, cache)
    if path.is_file():
        raise InputError(
            f"model {name!r} is a file; give a .gguf file, a folder written by save_pretrained or a Hub id"
        )
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name.strip() or path.suffix.lower() == ".gguf":
        raise InputError(f"model folder {name!r} does not exist; give smollm2, a local folder or a Hub id")
    return Place(name)


@contextmanager
def fetching(place: Place) -> Iterator[None]:
    """Inside, files of a model are read: what is here as it is, the Hub's from its cache where it does not answer.

    A `StatedFailure` inside then says so, and which folder is not there.
    """
    if Path(place.base).is_dir():
        yield
        return
    with cache_where_unreachable() as alone:
        try:
            yield
        except StatedFailure as error:
            raise StatedFailure(f"{error}{alone}; nor is there a folder {Path(place.base).absolute()}") from error


def read_object(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a model's file. Raises `InputError` for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r} cannot be loaded: its {path.name} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(
            f"model {name!r} cannot be loaded: its {path.name} holds {json.dumps(value)[:40]} where a JSON object "
            "belongs"
        )
    return value


def _in_folder(folder: Path, name: str, cache: Path) -> Place:
    if any(folder.glob("adapter_model.*")) and (folder / ADAPTER).is_file():
        return Place(_base_of(read_object(folder / ADAPTER, name), name, cache), str(folder))
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"model folder {name!r} has no {CONFIG}; give a folder written by save_pretrained, of a model or of a LoRA "
            f"adapter ({ADAPTER} and adapter_model.safetensors)"
        )
    read_object(folder / CONFIG, name)
    return Place(str(folder))


def _base_of(adapter: dict[str, Any], name: str, cache: Path) -> str:
    base = adapter.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise InputError(f"the adapter {name!r} does not say of which model it is (base_model_name_or_path)")
    try:
        place = locate(base, cache)
    except InputError as error:
        raise InputError(
            f"the adapter {name!r} is of the model {base!r}, which cannot be used: {error}; say where that model is "
            f"in base_model_name_or_path of its {ADAPTER}"
        ) from error
    if place.adapter is not None:
        raise InputError(f"the adapter {name!r} is of {base!r}, an adapter itself; merge that one into its model first")
    return place.base


def adapter_on_hub(name: str, revision: str | None = None, cache_dir: Path | None = None) -> Place | None:
    """The place of an adapter whose repository on the Hub holds no model of its own; None where there is none."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(name, revision=revision)
    except (OSError, ValueError):
        return None  # what is wrong with the name, loading says
    cache = cache_dir or default_cache_dir()
    return None if found is None else Place(_base_of(read_object(Path(found), name), name, cache), name)
