"""What is in the wheel? The package with its templates, constants and traits, and nothing else."""

from __future__ import annotations

import ast
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch

import margincast as mc
from margincast.report.figures import new_figure
from tests.problems import make_pairs

ROOT = Path(__file__).parents[1]
SOURCE = Path(mc.__file__).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built by the backend that `python -m build` calls, without an environment of its own."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="pip install -e '.[dev]' has hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    return zipfile.ZipFile(next(builder.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    written = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == written
    kinds = {Path(name).suffix for name in held}
    assert kinds == {".py", ".jinja", ".json", ".jsonl", ".md", ".typed"}
    assert {"margincast/trained/constants.json", "margincast/report/page.html.jinja", "margincast/py.typed"} <= held


def test_the_wheel_says_what_the_source_says(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["Version"] == mc.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    required = {each.partition(">=")[0] for each in metadata.get_all("Requires-Dist") or () if "extra ==" not in each}
    assert {"torch", "transformers", "gguf"} <= required
    assert "numba" not in required
    assert f"version: {mc.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_nothing_but_the_kernel_imports_what_may_be_absent() -> None:
    """Whoever never asks for a figure, a data frame or the Hub needs no matplotlib, pandas or datasets."""
    absent = {"matplotlib", "pandas", "datasets", "gguf", "numba", "llvmlite", "peft", "trl"}
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {path.name for name in names if name.partition(".")[0] in absent}
    assert found == {"kernel.py"}


@pytest.mark.parametrize("package", ["pandas", "matplotlib"])
def test_what_is_absent_is_named_with_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:

    split = mc.SplitTrajectory(make_pairs(4), torch.zeros(2, 4))
    trajectory = mc.Trajectory((0, 1), split, split, 0.1)
    wanted = trajectory.to_pandas if package == "pandas" else lambda: new_figure(1)
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(mc.StatedFailure, match=f"needs {package} .*: pip install {package}"):
        wanted()
