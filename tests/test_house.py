"""Are the signs there by which the house is reached? Read from the source: callers, lengths, asked classes, names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import margincast
from margincast.data.shapes import SHAPES
from margincast.data.sources import SOURCES
from margincast.diagnose.kinds import KINDS
from margincast.recipe.losses import LOSSES
from margincast.recipe.optimizers import OPTIMIZERS
from margincast.results import PRESENTERS
from margincast.selection.rules import RULES

ROOT = Path(margincast.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
REGISTRIES = (LOSSES, OPTIMIZERS, SHAPES, SOURCES, KINDS, RULES, PRESENTERS)
LONGEST, WIDEST = 60, 12


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def called(path: Path) -> Iterator[str]:
    """The modules that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_has_a_caller_that_a_user_can_reach() -> None:
    """From the public names and the command line, by imports and by registries."""
    todo = {"margincast", "margincast.__main__", "margincast.cli.main", *margincast._HOMES.values()}
    reached: set[str] = set()
    while todo:
        name = todo.pop()
        if name in reached or name not in MODULES:
            continue
        reached.add(name)
        todo |= {name.rpartition(".")[0], *called(MODULES[name])}
        packages = {registry.package: registry for registry in REGISTRIES}
        if name == "margincast.results":
            todo.add(PRESENTERS.package)
        todo |= set(packages[name]._modules.values()) if name in packages else set()
    assert sorted(set(MODULES) - reached) == []


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path.relative_to(ROOT).as_posix(), node


def test_no_function_is_longer_than_a_screen_and_none_takes_a_dozen_things() -> None:
    long = [(path, node.name) for path, node in functions() if node.end_lineno - node.lineno >= LONGEST]  # type: ignore[operator]
    wide = [
        (path, node.name)
        for path, node in functions()
        if len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) > WIDEST
    ]
    assert long == []
    assert wide == []


def test_nobody_asks_an_optimizer_or_a_loss_which_one_it_is() -> None:
    asked = re.compile(r"isinstance\([^)]*\b(Optimizer|Loss|SGD|AdamW?|GradientFlow|GradientDescent)\b")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in FILES
        for line in path.read_text(encoding="utf-8").splitlines()
        if path.relative_to(ROOT).parts[0] != "recipe" and asked.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("word, rooms, most", [("locals()", ("cli",), 0), ("dict[str, Any]", (), 29)])
def test_what_went_stays_away(word: str, rooms: tuple[str, ...], most: int) -> None:
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in FILES
        for line in path.read_text(encoding="utf-8").splitlines()
        if word in line and (not rooms or path.relative_to(ROOT).parts[0] in rooms)
    ]
    assert len(lines) <= most, lines


def test_the_environment_is_read_in_the_command_line_alone() -> None:
    """By no way that Python has: os.environ, os.getenv, or either imported by name."""
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if {getattr(node, "attr", None), getattr(node, "name", None), getattr(node, "id", None)}
        & {"environ", "environb", "getenv"}
    }
    assert {path.partition("/")[0] for path in readers} == {"cli"}
