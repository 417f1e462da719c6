"""An export changes what it says, says what it changed, and TRL's own reader takes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from margincast.diagnose import Suspects, apply_changes, plan_changes, write_cleaned
from margincast.diagnose.kinds import kinds
from margincast.errors import InputError
from tests.problems import make_pairs


def suspects(**scores: dict[int, float]) -> Suspects:
    """Six pairs; those named have the scores given, and are flagged above one half."""
    pairs = make_pairs(6)
    rows: list[dict[str, Any]] = []
    for k, pair in enumerate(pairs):
        row: dict[str, Any] = {"id": pair.id, "source": pair.source, "line": pair.line}
        for kind in kinds():
            row[f"{kind}_score"] = scores.get(kind, {}).get(k, 0.0)
            row[f"is_{kind}_issue"] = row[f"{kind}_score"] > 0.5
        row |= {"duplicate_of": f"p{k ^ 1}", "conflict_of": f"p{k ^ 1}"}
        rows.append(row)
    return Suspects(pairs, tuple(rows), {})


def test_drop_flip_and_weight() -> None:
    found = suspects(mislabel={1: 0.9, 4: 0.6, 5: 0.4})
    left, weights = apply_changes(found.pairs, plan_changes(found))
    assert [pair.id for pair in left] == ["p0", "p2", "p3", "p5"]
    assert weights == [1.0] * 4
    left, weights = apply_changes(found.pairs, plan_changes(found, "flip"))
    for before, after in zip(found.pairs, left, strict=True):
        turned = before.id in ("p1", "p4")
        assert (after.chosen, after.rejected) == (
            (before.rejected, before.chosen) if turned else (before.chosen, before.rejected)
        )
    left, weights = apply_changes(found.pairs, plan_changes(found, "weight"))
    assert list(left) == list(found.pairs)
    assert weights == pytest.approx([1, 0.1, 1, 1, 0.4, 1])


def test_thresholds_shares_and_several_kinds() -> None:
    found = suspects(mislabel={1: 0.9, 4: 0.6, 5: 0.4}, harm={1: 0.8, 2: 0.7})
    assert [change.id for change in plan_changes(found, threshold=0.3)] == ["p1", "p4", "p5"]
    assert [change.id for change in plan_changes(found, share=1 / 6)] == ["p1"]
    both = plan_changes(found, kinds=("mislabel", "harm"))
    assert [(change.id, change.issue) for change in both] == [("p1", "mislabel"), ("p2", "harm"), ("p4", "mislabel")]


def test_one_of_two_stays() -> None:
    """Of duplicates the first, of contradictions the likelier one."""
    found = suspects(duplicate={0: 1.0, 1: 1.0}, conflict={2: 0.95, 3: 0.95, 4: 1.0, 5: 1.0}, mislabel={2: 0.4, 5: 0.1})
    assert [change.id for change in plan_changes(found, kinds=("duplicate",))] == ["p1"]
    assert [change.id for change in plan_changes(found, kinds=("conflict",))] == ["p2", "p5"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"action": "burn"}, "drop, flip, weight"),
        ({"kinds": ("typos",)}, "got typos"),
        ({"kinds": ()}, "got none"),
        ({"action": "flip", "kinds": ("mislabel", "duplicate")}, "does not mend duplicate"),
        ({"share": 0.5, "threshold": 0.5}, "in place of a threshold"),
        ({"share": 0.5, "kinds": ("mislabel", "harm")}, "of one kind"),
    ],
)
def test_what_cannot_be_done_is_said(words: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan_changes(suspects(), **words)


def test_files_for_trl_for_judging_and_for_people(tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl.data_utils import extract_prompt

    found = suspects(mislabel={1: 0.9})
    path, heldout = tmp_path / "cleaned.jsonl", make_pairs(2, start=90)
    write_cleaned(path, found.pairs, heldout.pairs, plan_changes(found, "weight"))
    rows = load_dataset("json", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["weight"] == pytest.approx([1, 0.1, 1, 1, 1, 1])
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names)
    assert extract_prompt(rows[0])["chosen"] == found.pairs[0].chosen or rows[0]["chosen"] == found.pairs[0].chosen
    kept = [json.loads(line)["id"] for line in (tmp_path / "cleaned.heldout.jsonl").read_text().splitlines()]
    assert kept == ["p90", "p91"]
    (change,) = (json.loads(line) for line in (tmp_path / "cleaned.changes.jsonl").read_text().splitlines())
    assert (change["id"], change["line"], change["action"]) == ("p1", 2, "weight")
    assert "mislabel 0.900" in change["reason"]
