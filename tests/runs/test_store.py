"""Files are written whole or not at all, and JSON holds only what JSON has."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from margincast.runs.store import (
    atomic_path,
    file_sha256,
    key_of,
    plain,
    write_json,
    write_jsonl,
    write_tensors,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half of the ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.txt"]


def test_the_target_is_not_touched_before_the_write_is_done(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename within one file system is atomic
    assert path.read_text() == "new"


def test_a_reader_that_opened_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    """The new file takes the old one's name, not its place on disk."""
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new and longer")
        assert reader.read() == "old"


def test_folders_are_made_and_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "result.txt"
    previous = os.umask(0o027)
    try:
        write_text(path, "text")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    value = {
        "a": float("nan"),
        "b": [float("inf"), -float("inf"), 1.5, True, 3],
        "c": ({"d": (1, None)},),
        4: "ä\u2028",
    }
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {
        "a": None,
        "b": [None, None, 1.5, True, 3],
        "c": [{"d": [1, None]}],
        "4": "ä\u2028",
    }
    assert plain(True) is True


def test_json_lines_are_one_row_each(tmp_path: Path) -> None:
    rows = [{"text": "two\nlines"}, {"value": float("nan")}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    lines = (tmp_path / "x.jsonl").read_text().split("\n")
    assert lines == ['{"text": "two\\nlines"}', '{"value": null}', ""]
    write_jsonl(tmp_path / "x.jsonl", [])
    assert (tmp_path / "x.jsonl").read_bytes() == b""


def test_tensors_come_back_with_their_metadata_views_included(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    write_tensors(tmp_path / "x.safetensors", {"left": whole[:, :2], "turned": whole.T}, {"beta": "0.1"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["left"], whole[:, :2])
    assert torch.equal(loaded["turned"], whole.T)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"beta": "0.1"}


def test_parts_of_one_row_can_be_written(tmp_path: Path) -> None:
    """A slice of a single row is contiguous as it is: the two parts share memory."""
    row = torch.arange(5.0)[None]
    write_tensors(tmp_path / "x.safetensors", {"train": row[:, :3], "heldout": row[:, 3:]})
    loaded = load_file(tmp_path / "x.safetensors")
    assert {name: value.tolist() for name, value in loaded.items()} == {
        "train": [[0.0, 1.0, 2.0]],
        "heldout": [[3.0, 4.0]],
    }


def test_hashes_are_of_the_content(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "content")
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"content").hexdigest()
    assert key_of({"a": 1, "b": [2.5, None]}) == key_of({"b": [2.5, None], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of(["ab", "c"]) != key_of(["a", "bc"])
