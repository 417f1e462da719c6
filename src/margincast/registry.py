"""Where does one file become one more optimizer, loss, data source, row shape or suspect kind? In a table it enters.

A built-in is a module of the registry's package, named as a user names it, that calls `register`. A plug-in is an entry
point of the registry's group in another package, or a call of `register` anywhere. Names are known without importing
anything, so that `--help` can list them in a moment.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from margincast.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """What there is of one kind, by name.

    kind: what one of them is called in messages;  package: whose modules are the built-in ones
    group: of entry points in other packages, `name = module:object`
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter what it decorates under `name`. The later of two with one name is refused."""

        def enter(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise InputError(f"there is already a {self.kind} {name!r}; register it under another name")
            return entry

        return enter

    @cached_property
    def _modules(self) -> dict[str, str]:
        # By its place below the outermost package: the rooms between would import what they hold.
        outermost, *rooms = self.package.split(".")
        path = [str(Path(root, *rooms)) for root in importlib.import_module(outermost).__path__]
        names = [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]
        return {name: f"{self.package}.{name}" for name in names}

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    @property
    def built_in(self) -> tuple[str, ...]:
        return tuple(sorted(self._modules))

    @property
    def names(self) -> tuple[str, ...]:
        """Built-in ones first, by name, then plug-ins."""
        return tuple(dict.fromkeys([*sorted(self._modules), *sorted(self._plugins), *self._entries]))

    def get(self, name: str) -> T:
        """Raises `InputError` for a name that nothing has, and for a plug-in that cannot be loaded."""
        if name not in self._entries:
            if name in self._modules:
                importlib.import_module(self._modules[name])
            elif name in self._plugins:
                self._load(self._plugins[name])
            else:
                near = difflib.get_close_matches(name, self.names, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise InputError(f"{self.kind} {name!r} is not known; {hint}use one of: {', '.join(self.names)}")
        if name not in self._entries:
            raise InputError(f"{self._modules[name]} registers no {self.kind} {name!r}: its file must have that name")
        return self._entries[name]

    def _load(self, point: EntryPoint) -> None:
        try:
            entry: T = point.load()
        except Exception as error:  # code of another package, whatever it raises
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{self.kind} {point.name!r}, the plug-in {point.value}, does not load: {reason}"
            ) from error
        self._entries.setdefault(point.name, entry)

    def all(self) -> dict[str, T]:
        """Every one of them, loaded, in the order of `names`."""
        return {name: self.get(name) for name in self.names}
