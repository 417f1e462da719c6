"""A name is found without importing what it names; one file, or one entry point, is all that a new one takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from margincast.errors import InputError
from margincast.registry import Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Registry[object]:
    """A package with one built-in, `plain`, and an installed distribution with two plug-ins, of which one is broken."""
    name = f"shop_{abs(hash(request.node.name))}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text(
        f"from margincast.registry import Registry\nTHINGS = Registry('thing', __name__, '{name}')"
    )
    (package / "plain.py").write_text(f"from {name} import THINGS\nTHINGS.register('plain')('a plain thing')")
    (package / "_shared.py").write_text("")
    info = tmp_path / f"{name}_more-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-more\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{name}]\nfancy = {name}_more:FANCY\nbroken = {name}_more:MISSING\n")
    (tmp_path / f"{name}_more.py").write_text("FANCY = 'a fancy thing'")
    monkeypatch.syspath_prepend(str(tmp_path))
    things: Registry[object] = __import__(name).THINGS
    return things


def test_names_import_nothing(registry: Registry[object]) -> None:
    assert registry.names == ("plain", "broken", "fancy")
    assert f"{registry.package}.plain" not in sys.modules
    assert f"{registry.package}_more" not in sys.modules


def test_built_in_and_plug_in_are_found_alike(registry: Registry[object]) -> None:
    assert registry.get("plain") == "a plain thing"
    assert registry.get("fancy") == "a fancy thing"
    registry.register("mine")("my thing")
    assert registry.get("mine") == "my thing"
    assert registry.names[-1] == "mine"


def test_what_is_not_there_is_said_with_the_nearest(registry: Registry[object]) -> None:
    with pytest.raises(
        InputError, match=r"thing 'plane' is not known; did you mean plain[?] use one of: plain, broken, fancy"
    ):
        registry.get("plane")


def test_a_broken_plug_in_is_named(registry: Registry[object]) -> None:
    with pytest.raises(InputError, match=r"thing 'broken', the plug-in .*_more:MISSING, does not load: AttributeError"):
        registry.get("broken")


def test_two_of_one_name_are_refused(registry: Registry[object]) -> None:
    registry.register("mine")("my thing")
    with pytest.raises(InputError, match="already a thing 'mine'"):
        registry.register("mine")("another thing")
