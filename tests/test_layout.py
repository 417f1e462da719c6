"""The import graph points one way, and importing the package or its command line pulls in nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import margincast

ROOT = Path(margincast.__file__).parent
BASE = {"errors", "records", "registry", "results", "shown"}
# Every room may import from these and from itself; what is not named here is not allowed.
ALLOWED: dict[str, set[str]] = {
    "__init__": {"version"},
    "effects": set(),
    "errors": set(),
    "hub": set(),
    "intervals": {"errors"},
    "processes": {"errors"},
    "records": {"errors", "results", "splitting"},
    "results": {"errors", "registry"},
    "registry": {"errors"},
    "shown": set(),
    "splitting": {"errors"},
    "recipe": BASE,
    "data": BASE | {"hub", "runs"},
    "models": BASE | {"hub", "processes", "recipe", "runs"},
    "passes": BASE | {"models", "processes", "runs"},
    "evaldata": BASE | {"data", "effects", "models", "passes", "runs", "splitting"},
    "features": BASE | {"models", "passes", "processes", "runs"},
    "structure": BASE,
    "frozen": BASE | {"effects", "evaldata", "intervals", "recipe", "models", "passes", "features", "runs"},
    "theory": BASE | {"recipe", "frozen", "structure"},
    "runs": BASE | {"effects", "recipe", "intervals", "version"},
    "version": set(),
    "training": BASE | {"effects", "evaldata", "recipe", "models", "passes", "processes", "runs"},
    "trl": {"training"},
    "trained": BASE | {"recipe", "models", "passes", "features", "frozen", "training", "intervals", "runs", "scores"},
    "forecasting": BASE | {"recipe", "features", "frozen", "trained"},
    "scores": set(),
    "foretold": BASE | {"intervals", "runs", "scores"},
    "comparison": BASE | {"foretold", "intervals", "runs"},
    "decision": BASE | {"intervals", "runs", "trained"},
    "paper": BASE | {"intervals", "runs", "structure", "frozen", "recipe", "theory"},
    "diagnose": BASE | {"recipe", "features", "frozen", "runs"},
    "selection": BASE
    | {"diagnose", "features", "forecasting", "frozen", "intervals", "recipe", "runs", "splitting", "structure"},
    "report": BASE
    | {"recipe", "intervals", "comparison", "runs", "structure", "theory", "paper", "trained", "decision", "selection"},
}
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "scipy", "pandas")
FILES = sorted(ROOT.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Every margincast room that `tree` imports from, at module level or inside functions, type-only imports aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "margincast":
            parts = (node.module or "").split(".")
            yield from parts[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("margincast."))
        yield from imported(node)


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_back_along_the_way(path: Path) -> None:
    here = room(path)
    there = set(imported(ast.parse(path.read_text(encoding="utf-8")))) - {here}
    if here == "__main__":
        assert there == {"cli"}
    elif here != "cli":
        assert "cli" not in there, "nothing imports the command line"
        assert here in ALLOWED, f"{here} is a new room: give it its place in ALLOWED"
        assert there <= ALLOWED[here]


def test_frozen_and_training_do_not_know_each_other() -> None:
    """Directly or by way of another room: they meet in `compare`."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = {start}
        while todo:
            seen |= todo
            todo = set().union(*(ALLOWED[name] for name in todo)) - seen
        return seen

    assert "training" not in reach("frozen")
    assert "frozen" not in reach("training")


def test_the_graph_is_read_at_all() -> None:
    """The reader above sees imports at module level, inside functions and of submodules, and skips type-only ones."""
    text = """
from margincast.records import Pair
from margincast import comparison
import margincast.data.load
if TYPE_CHECKING:
    from margincast.recipe.losses import Loss
def f():
    if True:
        from margincast.cli.main import main
"""
    assert sorted(imported(ast.parse(text))) == ["cli", "comparison", "data", "records"]
    assert len(FILES) > 40


@pytest.mark.parametrize("module", ["margincast", "margincast.cli.main", "margincast.records", "margincast.errors"])
def test_importing_pulls_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_what_it_says_whatever_was_imported_before() -> None:
    """In a fresh interpreter, after every module: none has the name of a public function, and takes its place."""
    code = """
import importlib, pkgutil
import margincast as mc
for module in pkgutil.walk_packages(mc.__path__, "margincast."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in mc.__all__:
    assert getattr(getattr(mc, name), "__name__", name) == name, (name, getattr(mc, name))
    assert name in dir(mc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'margincast' has no attribute 'no_such_name'"):
        margincast.no_such_name  # noqa: B018
