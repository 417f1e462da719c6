"""A run that is stopped anywhere, and whose folder may be damaged, ends as it would have, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from margincast.errors import InputError
from margincast.features import features_of
from margincast.models.load import LoadedModel
from margincast.passes.tokenize import Encoding, encode
from margincast.records import Features, Trajectory
from margincast.runs.layout import LOCK, STATE
from margincast.training import run as training_run
from tests.problems import make_pairs
from tests.tiny import tiny_loaded
from tests.training.short_run import Trained


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Encoding, Features]:
    pairs = make_pairs(14)
    train, heldout = pairs[:10], pairs[10:]
    loaded = tiny_loaded()
    encoding = encode(pairs, loaded.tokenizer, eos=False)
    cache = tmp_path_factory.mktemp("cache")
    return loaded, encoding, features_of(loaded, encoding, train, heldout, cache_dir=cache)


@pytest.fixture(scope="module")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trajectory, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    return trained(folder), load_file(folder / "model" / "model.safetensors")


def assert_ends_as(folder: Path, again: Trajectory, whole: tuple[Trajectory, dict[str, torch.Tensor]]) -> None:
    margins, weights = whole[0].heldout.margins, whole[1]
    assert again.steps == whole[0].steps == (0, 2, 4, 6)
    assert torch.equal(again.heldout.margins, margins)
    found = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert not (folder / "state").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "optimizer missing": lambda state: (state / "checkpoint-4" / "optimizer.pt").unlink(),
    "scheduler missing": lambda state: (state / "checkpoint-4" / "scheduler.pt").unlink(),
    "a bit of the weights": lambda state: flip(state / "checkpoint-4" / "model.safetensors"),
    "optimizer cut": lambda state: cut(state / "checkpoint-4" / "optimizer.pt"),
    "generator empty": lambda state: (state / "checkpoint-4" / "rng_state.pth").write_bytes(b""),
    "never finished": lambda state: (state / "checkpoint-4" / "seal.json").unlink(),
    "config random": lambda state: (state / "checkpoint-4" / "config.json").write_bytes(b"\x00\xff"),
    "a recorded step missing": lambda state: (state / "step-0000004.safetensors").unlink(),
    "the reference missing": lambda state: (state / "step-0000000.safetensors").unlink(),
    "a recorded step cut": lambda state: cut(state / "step-0000002.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_goes_on_from_what_is_whole(
    damage: str, trained: Trained, whole: tuple[Trajectory, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    trained(tmp_path, stop_after=4)
    assert {path.name for path in (tmp_path / "state").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    DAMAGE[damage](tmp_path / "state")
    said: list[str] = []
    assert_ends_as(tmp_path, trained(tmp_path, say=said.append), whole)
    assert said
    assert all("cannot be used" in line and "\n" not in line for line in said)


def test_a_folder_that_is_whole_goes_on_without_a_word(
    trained: Trained, whole: tuple[Trajectory, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    trained(tmp_path, stop_after=4)
    said: list[str] = []
    assert_ends_as(tmp_path, trained(tmp_path, say=said.append), whole)
    assert said == []


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing can be kept once all steps are taken."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "finish", fail)
        yield patch


def test_stopped_after_its_last_step_a_run_takes_no_other(
    trained: Trained, whole: tuple[Trajectory, dict[str, torch.Tensor]], full_disk: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It once trained a step more, and said that it was finished, without a model."""
    with pytest.raises(OSError, match="No space"):
        trained(tmp_path)
    assert (tmp_path / "state" / "checkpoint-6").is_dir()
    full_disk.undo()
    assert_ends_as(tmp_path, trained(tmp_path), whole)


def test_what_an_interrupted_run_needs_stays_until_the_caller_is_done(trained: Trained, tmp_path: Path) -> None:
    first = trained(tmp_path, keep_state=True)
    assert (tmp_path / "state" / "checkpoint-6").is_dir()
    assert torch.equal(trained(tmp_path).heldout.margins, first.heldout.margins)


def test_two_runs_in_one_folder_are_one_too_many(trained: Trained, tmp_path: Path) -> None:
    theirs = tmp_path / STATE / "step-0.safetensors"
    theirs.parent.mkdir()
    theirs.write_bytes(b"recorded by the run at work")
    with FileLock(tmp_path / LOCK), pytest.raises(InputError, match="another process trains in"):
        trained(tmp_path)
    assert theirs.read_bytes() == b"recorded by the run at work"
