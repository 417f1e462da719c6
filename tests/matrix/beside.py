"""Does margincast install beside the trainers people have? `python -m tests.matrix.beside` asks pip, and prints the
table of docs/dependencies.md. Nothing is installed; versions are those of the package index on that day.

pip answers for the Python that runs this. A trainer that does not resolve alone is told apart from one that does not
resolve with margincast; the line that is shown is pip's own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.requirements import ROOT, asked

SECONDS = 240
# What trainers ask for of which there are no wheels: small, and of Python alone.
SOURCES = (
    "oss2", "crcmod", "aliyun-python-sdk-core", "aliyun-python-sdk-kms", "jieba", "rouge", "langdetect",
    "transformers-stream-generator", "axolotl-contribs-lgpl",
)  # fmt: skip
SHOWN = ("torch", "transformers", "datasets", "numpy", "accelerate", "pyarrow", "typer", "numba")
COLAB = [line for line in (ROOT / "tests" / "matrix" / "colab.txt").read_text().split() if "==" in line]
TRAINERS = {
    "trl 1.0": ["trl==1.0.0"],
    "trl 1.16": ["trl==1.16.0"],
    "vllm": ["vllm"],
    "llamafactory": ["llamafactory"],
    "axolotl": ["axolotl"],
    "ms-swift": ["ms-swift"],
    "unsloth": ["unsloth"],
    "openrlhf": ["openrlhf"],
    "Colab's list": COLAB,
}


@dataclass(frozen=True)
class Answer:
    """versions: by package, where pip found a set; else `problem`, in pip's words"""

    versions: dict[str, str]
    problem: str = ""


def resolve(requirements: list[str]) -> Answer:
    """What pip would install for `requirements` in an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
            "--only-binary=:all:", f"--no-binary={','.join(SOURCES)}", "--no-input",
            "--report", str(report), *requirements,
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return Answer({}, f"no answer from pip within {SECONDS} s")
        if done.returncode:
            return Answer({}, conflict(done.stderr))
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return Answer({re.sub("[-_.]+", "-", each["name"]).lower(): each["version"] for each in found})


def newest(name: str) -> str:
    """The trainer's newest version: pip would otherwise go back to one that is old enough to ask for nothing."""
    alone = resolve(["--no-deps", name])
    return f"{name}=={alone.versions[name]}" if name in alone.versions else name


def conflict(said: str) -> str:
    """The lines of pip's error that say who asks for what."""
    lines = [line.strip() for line in said.splitlines()]
    asks = [line for line in lines if re.search(r"depends on|requested", line)]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: C")]
    return "; ".join(asks[:4] or errors[:1] or ["pip failed"])


def main(names: list[str]) -> None:
    print(f"| beside | resolves | {' | '.join(SHOWN)} | whose pin it is |")
    print("|" + "---|" * (len(SHOWN) + 3))
    for name in names or TRAINERS:
        trainer = [each if "==" in each else newest(each) for each in TRAINERS[name]]
        answer = resolve([*trainer, *asked()])
        problem = answer.problem
        if problem and resolve(trainer).problem:
            problem = f"{name} does not resolve alone either: {problem}"
        title = name if "==" in TRAINERS[name][0] else trainer[0].replace("==", " ")
        versions = (answer.versions.get(package, "-") for package in SHOWN)
        print(f"| {title} | {'no' if problem else 'yes'} | {' | '.join(versions)} | {problem or '-'} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
