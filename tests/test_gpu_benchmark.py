"""The benchmark of a card, at toy size on a CPU: it runs, and both trainers take the same steps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from benchmarks.gpu import frozen, frozen_row, rows_of
from benchmarks.gpu.side import SHAPES, measure
from benchmarks.gpu.tokens import JOBS, STEPS


@pytest.fixture(autouse=True)
def drawn_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, shape = random.Random(0), SHAPES["toy"]

    def ids(length: int) -> list[int]:
        return [drawn.randrange(shape.vocabulary) for _ in range(length)]

    pairs = [(ids(drawn.randint(5, 20)), ids(drawn.randint(1, 8)), ids(drawn.randint(1, 8))) for _ in range(2 * STEPS)]
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps(dict.fromkeys(JOBS, pairs)))
    monkeypatch.setenv("MARGINCAST_GPU_TOKENS", str(file))


def test_toy_rows_agree_with_trl() -> None:
    shape = SHAPES["toy"]
    sides = {side: measure(side, shape, "hh", "cpu") for side in ("ours", "trl-best", "packed")}
    assert all(len(side.losses) == STEPS for side in sides.values())
    assert sides["ours"].distinct < sides["ours"].padded
    step, of_packed_trl, throughput = rows_of("toy", "hh", sides, peak=1e11)
    assert step.agrees
    assert of_packed_trl.agrees
    assert step.ratio_median == pytest.approx(step.seconds_peer / step.seconds_ours)
    assert 0 < throughput.ratio_median < 1


def test_toy_forecasts_are_attributed() -> None:
    row = frozen_row("toy", frozen.measure("toy", "cpu", pairs=6, steps=4))
    assert row.agrees
    assert row.ratio_median == row.seconds_ours > 0
