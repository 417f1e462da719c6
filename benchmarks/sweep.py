"""What do 16 settings cost beside one? `forecast --sweep` and `simulate --sweep`, as their commands run them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

from benchmarks.harness import Row
from margincast.cli.main import main

RATES = ",".join(f"{1e-6 * 2 ** (k / 2):.4g}" for k in range(16))
BETAS = ",".join(f"{0.01 * 2 ** (k / 2):.4g}" for k in range(16))
COMMANDS = {
    "forecast, 16 learning rates, one rehearsal": (
        ("forecast", "traits", "--max_steps", "60"),
        ("--sweep", f"learning_rate={RATES}"),
    ),
    "forecast without a rehearsal, 16 learning rates": (
        ("forecast", "traits", "--max_steps", "60", "--pilot", "0"),
        ("--sweep", f"learning_rate={RATES}"),
    ),
    "simulate, 16 betas": (("simulate",), ("--sweep", f"beta={BETAS}")),
}


def rows(repeats: int = 3) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command("inspect", "traits", "--out", str(out / "features"))  # for none of the runs to extract
        for name, (once, swept) in COMMANDS.items():
            times = []
            for number in range(repeats):
                one = command(*once, "--out", str(out / f"{name} {number}"))
                many = command(*once, *swept, "--out", str(out / f"{name} swept {number}"))
                times.append((many / one, many, one))
            ratios = sorted(ratio for ratio, *_ in times)
            ours, peer = (median(each[k] for each in times) for k in (1, 2))
            yield Row(name, "one run", None, median(ratios), ratios[0], ratios[-1], "<= 3", ours, peer)


def command(*words: str) -> float:
    """Seconds that a command took in this process. Raises `RuntimeError` where it fails."""
    start = time.perf_counter()
    try:
        with redirect_stdout(StringIO()):
            main(list(words))
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"margincast {' '.join(words)} failed") from stop
    return time.perf_counter() - start
