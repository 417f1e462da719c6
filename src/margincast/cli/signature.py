"""How does a record become options of a command? One option a field, as the field says of itself.

A command takes records; its signature for typer has their fields instead. What the user gave becomes the records
again, which refuse what is out of range.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from margincast.recipe.fields import Settings, check_fields, options_of, plain_types

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Fixed:
    """In `Annotated[Record, Fixed(...)]`: fields that are no options of the command, and what some of them are."""

    values: Mapping[str, Any]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One parameter of a command that is a record."""

    kind: type[DataclassInstance]
    fixed: Fixed

    def names(self) -> list[str]:
        left_out = {*self.fixed.values, *self.fixed.without}
        return [name for name in options_of(self.kind) if name not in left_out]

    def made(self, arguments: Settings) -> DataclassInstance:
        """The record of what was given. Raises `InputError` for what it refuses."""
        record = self.kind(**{name: arguments[name] for name in self.names()}, **self.fixed.values)
        check_fields(record)
        return record


def parts_of(function: Callable[..., Any], kinds: Mapping[type, type]) -> dict[str, Part]:
    """The records among the parameters; kinds: a record of another class in the place of one."""
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        hint, fixed = parameter.annotation, Fixed({})
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            fixed = next((extra for extra in extras if isinstance(extra, Fixed)), fixed)
        if is_dataclass(hint) and isinstance(hint, type):
            found[name] = Part(kinds.get(hint, hint), fixed)
    return found


def parameters_of(function: Callable[..., Any], parts: Mapping[str, Part]) -> list[inspect.Parameter]:
    """The command's parameters with every record's options in its place."""
    listed: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if name in parts:
            listed += [option_parameter(parts[name].kind, each) for each in parts[name].names()]
        else:
            listed.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    return listed


def option_parameter(kind: type[DataclassInstance], name: str) -> inspect.Parameter:
    option, (plain, optional) = options_of(kind)[name], plain_types(kind)[name]
    default = next(each.default for each in fields(kind) if each.name == name)
    choices = ", ".join(option.choices()) if option.choices else ""
    described = typer.Option(
        f"--{name}/--no_{name}" if plain is bool else f"--{name.rstrip('_')}",  # of a field `for_`, which is a keyword
        help=option.help.replace("{choices}", choices),
        rich_help_panel=option.panel,
        envvar=option.environment,
        show_default=default is not None and default is not False,
    )
    hint: Any = plain | None if optional else plain
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, described]
    )


def call(function: Callable[..., Any], parts: Mapping[str, Part], arguments: Settings) -> None:
    """`function` with the records that `arguments` make. Raises `InputError` for what they refuse."""
    records = {name: part.made(arguments) for name, part in parts.items()}
    taken = {name for part in parts.values() for name in part.names()}
    function(**records, **{name: value for name, value in arguments.items() if name not in taken})
