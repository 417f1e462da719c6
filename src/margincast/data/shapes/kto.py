"""Completions labelled one by one, as KTO has them: prompt, completion, label. Good and bad of a prompt are a pair."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from margincast.data.joining import read_row
from margincast.data.readers import Row, shorten
from margincast.data.shapes import SHAPES, Shape
from margincast.data.texts import RowError, Texts, read_text

COLUMNS = ("prompt", "completion", "label")
# In a CSV file, and as numbers.
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def _gathered(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The k-th good completion of a prompt beside its k-th bad one; and how many are left over.

    A pair stands in the row of its good completion. A row whose label is neither is returned with that problem.
    """
    done: list[Row] = []
    sides: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for row in rows:
        label = _LABELS.get(str(row.columns["label"]).strip().lower())
        if label is None:
            done.append(replace(row, problem=f"label must be true or false, got {shorten(row.columns['label'])}"))
        else:
            prompt = json.dumps(row.columns["prompt"], sort_keys=True, default=repr)
            sides[prompt][0 if label else 1].append(row)
    alone = 0
    for good, bad in sides.values():
        alone += abs(len(good) - len(bad))
        done.extend(
            replace(row, columns={**row.columns, "rejected": other.columns["completion"]})
            for row, other in zip(good, bad, strict=False)
        )
    return sorted(done, key=lambda row: row.line), alone


def _kto(columns: Mapping[str, object]) -> Texts:
    if "rejected" not in columns:
        raise RowError("one completion is no pair")
    notes = ["a completion labelled true is paired with one labelled false of the same prompt"]
    prompt = read_text("prompt", columns["prompt"], notes)
    return read_row({**columns, "chosen": columns["completion"]}, prompt, notes)


SHAPES.register("kto")(Shape(COLUMNS, _kto, title="KTO", also=("system",), unless=("chosen",), gather=_gathered))
