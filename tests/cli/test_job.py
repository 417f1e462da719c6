"""What a job prints is harmless, and of a folder that two share, what one writes now is not the other's to remove."""

import os
import time
from pathlib import Path

import pytest

from margincast.cli.job import ABANDONED, Job
from tests.cli.helpers import run


def test_only_parts_that_nobody_writes_any_more_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / ".margins.old.part", tmp_path / ".margins.young.part"
    for part in (old, young):
        part.touch()
    past = time.time() - 2 * ABANDONED
    os.utime(old, (past, past))
    Job("train", {}, tmp_path, json=False, quiet=True, finished=False).write_config()
    assert young.is_file()
    assert not old.exists()


def test_what_a_terminal_would_obey_is_printed_as_code_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job("forecast", {}, tmp_path, json=False, quiet=False, finished=False)
    job.say("tea\x1b[2J\x00\u202e and\n\ttea\u200d")
    job.table("title\x07", ["name\x1b"], [["\ufffetea"]])
    said = capsys.readouterr().out
    assert said.startswith("tea<U+001B>[2J<U+0000><U+202E> and\n\ttea\u200d\n")
    assert all(each in said for each in ("title<U+0007>", "name<U+001B>", "<U+FFFE>tea"))
    refused = run("report", tmp_path / "no\x1b[31mrun")
    assert refused.status == 2
    assert "no<U+001B>[31mrun" in refused.err


def test_an_output_that_was_closed_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    job = Job("cache", {}, tmp_path, json=False, quiet=False, finished=False)
    job.table("", ["name"], [["tea"]])
    assert not job.progress
