"""A part of one's own is one file, used from Python and the command line: an optimizer, a loss, a source, a shape, a
suspect kind, a rule of selection, a field of the recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from margincast.data import load_pairs
from margincast.data.shapes import SHAPES
from margincast.data.sources import SOURCES
from margincast.diagnose.kinds import KINDS
from margincast.recipe.fields import option
from margincast.recipe.losses import LOSSES
from margincast.recipe.optimizers import OPTIMIZERS
from margincast.recipe.recipe import Recipe
from margincast.selection.rules import RULES
from tests.cli.helpers import Outcome, run

SIGN = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from margincast.recipe.optimizer import Optimizer


@dataclass(frozen=True)
class Sign(Optimizer):
    path_known: ClassVar[bool] = True

    def update(self, gradient, weights, slots, step, learning_rate):
        return -learning_rate * gradient.sign()

    def torch_optimizer(self):
        return SignOfTorch, {"lr": self.learning_rate}


class SignOfTorch(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.add_(weight.grad.sign(), alpha=-group["lr"])
"""
CUBIC = """
from margincast.recipe.losses import custom_loss


def cubic():
    return custom_loss("cubic", lambda r: (2 - r).clamp(min=0) ** 3)
"""


SHELF = """
from margincast.data.readers import Row, Source
from margincast.data.sources import SourceKind


def rows(count):
    for number in range(count):
        likes = "Yes No" if number % 2 else "No Yes"
        yield Row(number + 1, {"asked": f"Item {number} {number * 7 % 5}?", "says": likes})


SHELF = SourceKind(
    claims=lambda data: data.startswith("shelf:"),
    find=lambda data, where: [Source(data, "shelf", "row", lambda: rows(int(data.removeprefix("shelf:"))))],
)
"""
SAYING = """
from margincast.data.shapes import Shape
from margincast.data.texts import Texts


def read(columns):
    chosen, rejected = columns["says"].split()
    return Texts(columns["asked"], " " + chosen, " " + rejected)


SAYING = Shape(("asked", "says"), read)
"""
EVEN = """
import torch

from margincast.diagnose.kinds import Scores, SuspectKind


def score(evidence):
    even = (torch.arange(len(evidence.pairs)) % 2 == 0).double()
    return Scores(0.75 * even, even > 0)


EVEN = SuspectKind("whether its row is even", 0.5, score)
"""
ODD = """
import torch

from margincast.selection.rules import Rule

ODD = Rule("rows with odd numbers", lambda evidence: (torch.arange(len(evidence.pairs)) % 2).double())
"""
POINTS = """
[margincast.optimizers]
sign = own_sign:Sign
[margincast.losses]
cubic = own_cubic:cubic
[margincast.sources]
shelf = own_shelf:SHELF
[margincast.shapes]
saying = own_saying:SAYING
[margincast.suspects]
even = own_even:EVEN
[margincast.rules]
odd = own_odd:ODD
"""
MODULES = {"sign": SIGN, "cubic": CUBIC, "shelf": SHELF, "saying": SAYING, "even": EVEN, "odd": ODD}
REGISTRIES = {"sign": OPTIMIZERS, "cubic": LOSSES, "shelf": SOURCES, "saying": SHAPES, "even": KINDS, "odd": RULES}


@pytest.fixture
def plugins(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with one part of every kind, each in a file of its own."""
    folder = tmp_path_factory.mktemp("plugins")
    for name, text in MODULES.items():
        (folder / f"own_{name}.py").write_text(text)
    info = folder / "own_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(folder))
    for registry in REGISTRIES.values():
        registry.__dict__.pop("_plugins", None)
    yield
    for name, registry in REGISTRIES.items():
        registry.__dict__.pop("_plugins", None)
        registry._entries.pop(name, None)
        sys.modules.pop(f"own_{name}", None)


WORDS = ("--learning_rate", 1e-3, "--max_steps", 3, "--eval_steps", 3, "--per_device_train_batch_size", 8)


@pytest.mark.usefixtures("plugins")
def test_an_optimizer_and_a_loss_of_another_package(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    assert "cubic" in run("train", "--help").out
    words = (data_folder, "--model", model_folder, "--train", "head", "--loss_type", "cubic", "--optimizer", "sign")
    forecast = run("forecast", *words, *WORDS, "--out", tmp_path / "f")
    assert forecast.status == 0, forecast.err
    trained = run("train", *words, *WORDS, "--out", tmp_path / "t", "--no_save_model")
    assert trained.status == 0, trained.err
    compared = run("compare", tmp_path / "f", tmp_path / "t", "--json", "--out", tmp_path / "c")
    results = json.loads(compared.out)["results"]
    final = json.loads((tmp_path / "f" / "summary.json").read_text())["results"]["final"]
    assert abs(final["eval_rewards/margins"]) > 1e-5
    assert results["heldout"]["max_abs_difference"] < 1e-3 * abs(final["eval_rewards/margins"])
    refused = run("attribute", tmp_path / "f", "--out", tmp_path / "a")
    assert refused.status == 2 and "under Sign is not known" in refused.err
    made = Recipe(train="head", loss_type="cubic", optimizer="sign")
    assert (made.loss.name, type(made.rule).__name__) == ("cubic", "Sign")


@pytest.mark.usefixtures("plugins")
def test_a_source_a_shape_a_suspect_kind_and_a_rule_of_another_package(model_folder: Path, tmp_path: Path) -> None:
    pairs = load_pairs("shelf:40")
    assert (len(pairs), pairs[1].chosen, pairs[1].prompt) == (40, " Yes", "Item 1 2?")
    words = ("shelf:40", "--model", model_folder, "--train", "head", *WORDS)
    assert run("forecast", *words, "--out", tmp_path / "f").status == 0
    assert "even" in run("attribute", "--help").out
    cleaned = tmp_path / "cleaned.jsonl"
    done = run("attribute", tmp_path / "f", "--issues", "even", "--export", cleaned, "--out", tmp_path / "a")
    assert done.status == 0, done.err
    assert "whether its row is even" in done.out
    rows = [json.loads(line) for line in (tmp_path / "a" / "issues.jsonl").read_text().splitlines()]
    assert {row["even_score"] for row in rows} == {0.0, 0.75}
    assert len(cleaned.read_text().splitlines()) == sum(not row["is_even_issue"] for row in rows)
    selected = run("select", *words[:3], "--rules", "odd", *WORDS, "--out", tmp_path / "s")
    assert selected.status == 0, selected.err
    kept = [json.loads(line) for line in (tmp_path / "s" / "selection.jsonl").read_text().splitlines()]
    assert [row["keep"] for row in kept] == [bool(row["value"]) for row in kept]
    refused = run("attribute", tmp_path / "f", "--issues", "odd", "--export", cleaned, "--out", tmp_path / "b")
    assert refused.status == 2 and "even" in refused.err


@dataclass(frozen=True, kw_only=True)
class Noted(Recipe):
    """A recipe with one more field."""

    note: str = option("nothing", "What to remember of this run")


def run_noted(*words: object) -> Outcome:
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from margincast.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(word) for word in words], recipe=Noted)
    return Outcome(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def test_one_more_field_is_an_option_everywhere(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    for command in ("forecast", "train", "decompose"):
        assert "What to remember of this run" in run_noted(command, "--help").out
    words = (data_folder, "--model", model_folder, "--train", "head", *WORDS)
    assert run_noted("forecast", *words, "--note", "by flag", "--out", tmp_path / "a").status == 0
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["note"] == "by flag"
    (tmp_path / "mine.yaml").write_text("note: by file\n")
    done = run_noted("forecast", *words, "--config", tmp_path / "mine.yaml", "--out", tmp_path / "b")
    assert done.status == 0, done.err
    assert yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())["note"] == "by file"
    assert Noted(note="by hand").note == Noted.from_yaml(tmp_path / "mine.yaml").note.replace("file", "hand")
    assert run("forecast", *words, "--note", "x").status == 2
