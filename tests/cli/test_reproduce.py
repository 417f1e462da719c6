"""`margincast reproduce` at smoke scale: figures, verdicts, figures drawn again, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.helpers import run

GRID = ("--K", "1,2", "--seeds", "7", "--max_steps", 4)
ONE = ("fig2", "--K", "1", *GRID[2:])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reproduction that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    outcome = run("reproduce", "all", *GRID, "--out", out)
    assert outcome.status == 0, outcome.err
    return out


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_figure_and_a_verdict_per_claim(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    verdicts = summary["results"]["verdicts"]
    assert all(set(v) == {"claim", "holds", "value", "low", "high", "compared"} for v in verdicts)
    claims = " ".join(v["claim"] for v in verdicts)
    for words in (
        "shared component",
        "near zero after centring",
        "held-out margins grow",
        "loss",
        "Qβ²/N",
        "held-out accuracy at the last step is forecast within 3%",
        "condition",
    ):
        assert words in claims
    names = {path.name for path in (whole / "figures").iterdir()}
    expected = {f"{figure}-{shown}-{side}" for figure in ("fig1", "fig3") for shown in ("statement", "question")
                for side in ("matching", "both")} | {"fig2", "fig4", "fig5"}  # fmt: skip
    assert names == {f"{name}.{kind}" for name in expected for kind in ("svg", "png")}
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "shared component present" in page
    # A forecast of a frozen backbone lies on the run it foretells.
    rows = {(row["K"], row["source"]): row for row in lines(whole / "curves.jsonl")
            if row["weights"] == "head" and row["optimizer"] == "adamw"}  # fmt: skip
    for k in (1, 2):
        for split in ("train", "heldout"):
            there, here = (rows[k, source][split]["margin"] for source in ("training", "forecast"))
            assert here == pytest.approx(there, abs=1e-6)


def test_figures_are_drawn_again_from_the_records(whole: Path) -> None:
    figures = {path.name: path.read_bytes() for path in (whole / "figures").iterdir()}
    for path in (whole / "figures").iterdir():
        path.unlink()
    assert run("report", whole).status == 0
    assert {path.name: path.read_bytes() for path in (whole / "figures").iterdir()} == figures


def test_a_run_inside_is_a_run_of_its_own_command(whole: Path, tmp_path: Path) -> None:
    part = whole / "runs" / "training-all-k2-seed7"
    outcome = run("train", "--config", part / "config.yaml", "--out", tmp_path / "again")
    assert outcome.status == 0, outcome.err
    assert lines(tmp_path / "again" / "metrics.jsonl") == lines(part / "metrics.jsonl")


def test_killed_and_resumed_is_as_if_nothing_had_been(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "margincast", "reproduce", *map(str, ONE), "--out", str(out)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    started = out / "runs" / "training-all-k1-seed7" / "state"
    until = time.monotonic() + 120
    while not list(started.glob("checkpoint-2")) and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (out / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    assert before
    resumed = run("reproduce", *ONE, "--out", out)
    assert resumed.status == 0, resumed.err
    assert f"{len(before)} of 5 runs: done before" in resumed.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert lines(out / "curves.jsonl") == [row for row in lines(whole / "curves.jsonl") if row["K"] == 1]


def test_two_processes_over_one_folder_share_the_runs(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "margincast", "reproduce", *map(str, ONE), "--out", str(out)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    made = [line.split(": ")[1] for text in said for line in text.splitlines() if line.startswith("run ")]
    assert sorted(made) == sorted(path.name for path in (out / "runs").iterdir())
    assert len(made) == 5
    assert lines(out / "curves.jsonl") == [row for row in lines(whole / "curves.jsonl") if row["K"] == 1]


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = run("reproduce", "all", "--scale", "smoke", "--dry_run", "--out", out)
    assert outcome.status == 0, outcome.err
    assert "all, K=4" in outcome.out
    assert not out.exists()
    estimates = json.loads(run("reproduce", "fig2", "--dry_run", "--json", "--out", out).out)
    assert [(r["weights"], r["K"]) for r in estimates["runs"]] == [(w, k) for w in ("head", "all") for k in (1, 2, 4)]


@pytest.mark.parametrize(
    "words, message",
    [
        (("fig1", "--scale", "cpu", "--persona_dir", "none"), "persona folder none: no such folder"),
        (("fig1", "--scale", "paper"), "needs --model"),
        (("fig2", "--K", "3"), "lists of 1, 2, 4 personas"),
        (("fig2", "--seeds", "one"), "give whole numbers"),
        (("fig9",), "fig9"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    outcome = run("reproduce", *words, "--out", tmp_path / "out")
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert message in outcome.err
    assert not (tmp_path / "out").exists()
