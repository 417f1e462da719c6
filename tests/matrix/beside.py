"""Does margincast install beside the trainers people have? `python -m tests.matrix.beside` asks uv, and writes the
table of docs/dependencies.md. Nothing is installed but uv; versions are those of the package index on that day.

Each trainer is asked for at its newest version, since a resolver otherwise goes back to one that asks for nothing. What
a package needs is read from its metadata, that of its source archive where it has no wheel: whether the archive can be
built on some machine is the trainer's own affair, so the table only names it. A trainer that does not resolve alone is
told apart from one that does not resolve with margincast; the reason is uv's own.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tomllib

from tests.matrix.requirements import ROOT, asked

PAGE = ROOT / "docs" / "dependencies.md"
BEGIN, END = "<!-- written by python -m tests.matrix.beside -->\n", "<!-- end of what it wrote -->\n"
SECONDS = 600
SHOWN = ("torch", "transformers", "datasets", "numpy", "accelerate", "pyarrow", "typer", "numba")
COLAB = tuple(line for line in (ROOT / "tests" / "matrix" / "colab.txt").read_text().split() if "==" in line)


@dataclass(frozen=True)
class Trainer:
    """requirements: as its users install it, without a version for the newest;  python: of their environment"""

    requirements: tuple[str, ...]
    python: str = "3.11"


TRAINERS = {
    "trl 1.0": Trainer(("trl==1.0.0",)),
    "trl 1.16": Trainer(("trl==1.16.0",)),
    "vllm": Trainer(("vllm",)),
    "llamafactory": Trainer(("llamafactory",)),
    "axolotl": Trainer(("axolotl",)),
    "axolotl, newest": Trainer(("axolotl",), "3.12"),
    "ms-swift": Trainer(("ms-swift",)),
    "unsloth": Trainer(("unsloth",)),
    "openrlhf": Trainer(("openrlhf",)),
    "Colab's list": Trainer(COLAB),
}


@dataclass(frozen=True)
class Answer:
    """versions: by package, where there is a set that all agree on; else `problem`, in uv's words
    built: of these packages those that have no wheel
    """

    versions: dict[str, str]
    built: tuple[str, ...] = ()
    problem: str = ""


def resolve(requirements: tuple[str, ...], python: str, *options: str) -> Answer:
    """What uv would install for `requirements` in an empty environment on x86 Linux.

    Raises `TimeoutExpired` where there is no answer: that is neither yes nor no, and no table is written.
    """
    command = [
        str(uv()), "pip", "compile", "-", "--quiet", "--no-config", "--format", "pylock.toml",
        "--python-version", python, "--python-platform", "x86_64-manylinux_2_35", "--no-python-downloads", *options,
    ]  # fmt: skip
    given = "\n".join(requirements)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode:
        return Answer({}, problem=conflict(done.stderr))
    found = tomllib.loads(done.stdout)["packages"]
    built = tuple(each["name"] for each in found if not each.get("wheels"))
    return Answer({each["name"]: each["version"] for each in found}, built)


def uv() -> Path:
    """The program, in an environment of its own."""
    folder = ROOT / "build" / "matrix" / "uv"
    program = folder / "bin" / "uv"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
    return program


def conflict(said: str) -> str:
    """uv's reasons, on one line: who asks for what. Raises `RuntimeError` where uv failed before it came to any."""
    cause = re.search(r"cause: (.*?)(\n\n|\Z)", said, flags=re.DOTALL)
    if "No solution found" not in said or cause is None:
        raise RuntimeError(f"uv failed: {said.strip()}")
    return " ".join(cause[1].split()).partition(", we can conclude")[0]


def row(name: str, trainer: Trainer) -> str:
    """One line of the table."""
    title, wanted = name, trainer.requirements
    if "==" not in wanted[0]:
        alone = resolve(wanted, trainer.python, "--no-deps")
        if alone.problem:
            raise RuntimeError(f"{name}: {alone.problem}")
        newest = alone.versions[wanted[0]]
        title, wanted = f"{wanted[0]} {newest}", (f"{wanted[0]}=={newest}",)
    answer = resolve((*wanted, *asked()), trainer.python)
    problem = answer.problem
    if problem and resolve(wanted, trainer.python).problem:
        problem = f"not alone either: {problem}"
    cells = [
        title, trainer.python, "no" if problem else "yes", *(answer.versions.get(package, "-") for package in SHOWN),
        ", ".join(f"{each} {answer.versions[each]}" for each in answer.built) or "-", problem or "-",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    version = subprocess.run([str(uv()), "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    day = datetime.datetime.now(tz=datetime.timezone.utc).date()
    lines = [
        f"On {day:%-d %B %Y}, by uv {version}, for x86 Linux:",
        "",
        f"| beside | Python | resolves | {' | '.join(SHOWN)} | without a wheel | whose pin it is |",
        "|" + "---|" * (len(SHOWN) + 5),
    ]
    for name, trainer in TRAINERS.items():
        begin = time.perf_counter()
        lines.append(row(name, trainer))
        print(lines[-1], f"({time.perf_counter() - begin:.0f} s)", flush=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    part = PAGE.with_suffix(".part")
    part.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after, encoding="utf-8")
    part.replace(PAGE)


if __name__ == "__main__":
    main()
