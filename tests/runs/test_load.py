"""Run folders: what is written comes back, and damage is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from margincast.errors import InputError
from margincast.records import Pair, PairSet, SplitTrajectory, Trajectory
from margincast.runs.layout import SCHEMA_VERSION
from margincast.runs.load import load_run
from margincast.runs.metrics import metric_rows
from margincast.runs.save import save_trajectory, trajectory_results, write_summary

AWKWARD = 'a line\nbreak, a separator\u2028, a next line\x85, a quote " and an ä'


def some_run() -> Trajectory:
    def chat(text: str) -> tuple[dict[str, str], ...]:
        return ({"role": "user", "content": text},)

    standard = tuple(Pair(f"p{k}", f"c{k % 2}", f"{AWKWARD} {k}", " Yes", " No", "a.jsonl", k + 1) for k in range(5))
    messages = tuple(Pair(f"m{k}", "c0", chat(AWKWARD), chat("b"), chat("c"), "b.jsonl", k + 1) for k in range(2))
    generator = torch.Generator().manual_seed(0)

    def split(pairs: tuple[Pair, ...], chosen: bool) -> SplitTrajectory:
        margins = torch.randn(3, len(pairs), generator=generator, dtype=torch.float64)
        return SplitTrajectory(PairSet(pairs), margins, margins / 3 if chosen else None)

    return Trajectory((0, 4, 7), split(standard, True), split(messages, False), 0.1, "sigmoid", "a made run")


def save(folder: Path) -> Trajectory:
    trajectory = some_run()
    rows = save_trajectory(folder, trajectory)
    config = {"beta": 0.1, "loss_type": "sigmoid"}
    write_summary(folder, "forecast", config, trajectory_results(trajectory, rows, seconds=1.5))
    return trajectory


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    before = save(tmp_path / "run")
    run = load_run(tmp_path / "run")
    after = run.trajectory
    assert (after.steps, after.beta, after.loss_type, after.origin) == ((0, 4, 7), 0.1, "sigmoid", "a made run")
    for ours, theirs in ((after.train, before.train), (after.heldout, before.heldout)):
        assert ours.pairs == theirs.pairs
        assert torch.equal(ours.margins, theirs.margins)
    assert after.train.chosen is not None
    assert before.train.chosen is not None
    assert torch.equal(after.train.chosen, before.train.chosen)
    assert after.heldout.chosen is None
    assert metric_rows(after) == metric_rows(before)
    assert run.title == "forecast, frozen backbone"


def test_the_summary_has_the_keys_other_programs_rely_on(tmp_path: Path) -> None:
    trajectory = save(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["schema_version"] == SCHEMA_VERSION
    assert {"command", "config", "environment", "results"} <= set(summary)
    assert {"packages", "device", "threads"} <= set(summary["environment"])
    results = summary["results"]
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert results["final"] == json.loads(lines[-1])
    assert len(lines) == len(trajectory.steps)
    assert set(results["concepts"]["c0"]["heldout_margin"]) == {"value", "low", "high"}
    assert results["seconds"] == 1.5
    assert results["peak_memory_bytes"] > 10**7


def test_pairs_say_where_they_come_from(tmp_path: Path) -> None:
    save(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_bytes().splitlines()]
    assert [row["split"] for row in rows] == ["train"] * 5 + ["heldout"] * 2
    assert rows[3]["id"] == "p3"
    assert (rows[3]["source"], rows[3]["line"], rows[3]["concept"]) == ("a.jsonl", 4, "c1")
    assert rows[3]["prompt"] == f"{AWKWARD} 3"
    assert rows[5]["chosen"] == [{"role": "user", "content": "b"}]


def test_numbers_that_are_not_finite_survive_in_the_tensors(tmp_path: Path) -> None:
    trajectory = some_run()
    trajectory.heldout.margins[2, 0] = float("nan")
    rows = save_trajectory(tmp_path, trajectory)
    write_summary(
        tmp_path,
        "train",
        {"beta": 0.1, "loss_type": "sigmoid", "train": "all"},
        trajectory_results(trajectory, rows, 1.0),
    )
    run = load_run(tmp_path)
    assert bool(run.trajectory.heldout.margins[2, 0].isnan())
    assert run.summary["results"]["final"]["eval_rewards/margins"] is None
    assert run.title == "training, all weights"


Damage = Callable[[Path], object]


def edit(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        change(summary)
        (folder / "summary.json").write_text(json.dumps(summary))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        values = load_file(folder / "margins.safetensors")
        change(values)
        save_file(values, folder / "margins.safetensors")

    return damage


def overwrite(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


DAMAGE: dict[str, tuple[Damage, str]] = {
    "no summary": (lambda folder: (folder / "summary.json").unlink(), "summary.json not there"),
    "no margins": (lambda folder: (folder / "margins.safetensors").unlink(), "margins.safetensors not there"),
    "no pairs": (lambda folder: (folder / "pairs.jsonl").unlink(), "pairs.jsonl not there"),
    "summary cut": (cut("summary.json"), "is damaged"),
    "summary no object": (overwrite("summary.json", b"[]"), "is damaged"),
    "summary not text": (overwrite("summary.json", b"\xff\xfe"), "is damaged"),
    "pairs cut": (cut("pairs.jsonl"), "is damaged"),
    "pairs no objects": (overwrite("pairs.jsonl", b"[1]\n[2]\n"), "is damaged"),
    "pairs empty": (overwrite("pairs.jsonl", b""), "is damaged"),
    "margins cut": (cut("margins.safetensors"), "is damaged"),
    "margins empty": (overwrite("margins.safetensors", b""), "is damaged"),
    "no steps": (tensors(lambda values: values.pop("steps")), "is damaged"),
    "one step too few": (tensors(lambda values: values.update(steps=torch.tensor([0, 4]))), "is damaged"),
    "steps no list": (tensors(lambda values: values.update(steps=torch.tensor(3))), "is damaged"),
    "margins flat": (tensors(lambda values: values.update(train=torch.zeros(5))), "is damaged"),
    "a pair too few": (tensors(lambda values: values.update(train=torch.zeros(3, 4))), "is damaged"),
    "chosen too few": (tensors(lambda values: values.update(train_chosen=torch.zeros(2, 5))), "is damaged"),
    "no beta": (edit(lambda summary: summary["config"].pop("beta")), "is damaged"),
    "beta null": (edit(lambda summary: summary["config"].update(beta=None)), "is damaged"),
    "no origin": (edit(lambda summary: summary["results"].pop("origin")), "is damaged"),
    "newer": (edit(lambda summary: summary.update(schema_version=99)), "schema 99; this margincast reads 1"),
}


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(name: str, hashes: bool, tmp_path: Path) -> None:
    """By its hashes, and where an earlier version wrote the run without them."""
    damage, reason = DAMAGE[name]
    save(tmp_path / "run")
    if not hashes:
        edit(lambda summary: summary.pop("files"))(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(InputError, match=reason) as caught:
        load_run(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "margins.safetensors").read_bytes())
    content[-3] ^= 4
    (folder / "margins.safetensors").write_bytes(content)


def swap_ids(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_bytes().splitlines()]
    rows[0]["id"], rows[1]["id"] = rows[1]["id"], rows[0]["id"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def cut_at_a_line_end(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))


SILENT: dict[str, tuple[Damage, str]] = {
    "a bit": (flip_a_bit, "margins.safetensors"),
    "nan": (tensors(lambda values: values["heldout"].__setitem__((1, 0), float("nan"))), "margins.safetensors"),
    "ids swapped": (swap_ids, "pairs.jsonl"),
    "metrics cut": (cut_at_a_line_end, "metrics.jsonl"),
}


@pytest.mark.parametrize("name", SILENT)
def test_damage_that_could_be_read_is_found_by_its_hash(name: str, tmp_path: Path) -> None:
    damage, file = SILENT[name]
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=f"is damaged: {file} changed after the run wrote it"):
        load_run(tmp_path)


def test_a_run_written_before_hashes_were_still_loads(tmp_path: Path) -> None:
    before = save(tmp_path)
    edit(lambda summary: summary.pop("files"))(tmp_path)
    assert torch.equal(load_run(tmp_path).trajectory.heldout.margins, before.heldout.margins)


def test_a_folder_that_is_not_there_or_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a finished .* run: summary\.json, margins\.safetensors, pairs\.jsonl"):
        load_run(tmp_path)
