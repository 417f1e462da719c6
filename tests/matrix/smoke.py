"""Does the main job run in this environment? Every command once, in one process, on a few pairs and the tiny model.

`PYTHONPATH=src python -m tests.matrix.smoke`: margincast need not be installed.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROWS = 24
SETTINGS = ["--model", "tiny", "--max_steps", "2", "--per_device_train_batch_size", "8", "--quiet"]


def words(data: Path, out: Path) -> list[list[str]]:
    return [
        ["inspect", str(data), "--model", "tiny", "--out", str(out / "inspect"), "--quiet"],
        ["forecast", str(data), *SETTINGS, "--train", "head", "--out", str(out / "forecast")],
        ["forecast", str(data), *SETTINGS, "--out", str(out / "fitted")],
        ["train", str(data), *SETTINGS, "--out", str(out / "train")],
        ["train", str(data), *SETTINGS, "--train", "head", "--gradient_checkpointing", "--out", str(out / "head")],
        ["compare", str(out / "forecast"), str(out / "head"), "--out", str(out / "compare"), "--quiet"],
        ["attribute", str(out / "forecast"), "--out", str(out / "attribute"), "--quiet"],
        ["report", str(out / "train"), "--quiet"],
    ]


def main() -> None:
    from margincast.cli.main import main as margincast

    packages = ("torch", "transformers", "datasets", "numpy", "accelerate", "pyarrow", "typer")
    print("python", platform.python_version(), *(f"{name} {version(name)}" for name in packages))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder  # the tiny model and the features are made anew
        data = Path(folder) / "pairs.jsonl"
        sides = [(" Yes", " No"), (" No", " Yes")]
        rows = [
            {"prompt": f"Is {i} odd?", "chosen": sides[i % 2][0], "rejected": sides[i % 2][1], "topic": f"t{i % 3}"}
            for i in range(ROWS)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for each in words(data, Path(folder) / "runs"):
            begin = time.perf_counter()
            try:
                margincast(each)
                status: object = 0
            except SystemExit as stop:
                status = stop.code or 0
            print(f"{each[0]:10} {time.perf_counter() - begin:5.1f} s")
            if status:
                raise SystemExit(f"margincast {' '.join(each)}: exit status {status}")
        for name in ("train", "attribute"):
            assert (Path(folder) / "runs" / name / "report.html").stat().st_size > 0, name


if __name__ == "__main__":
    main()
