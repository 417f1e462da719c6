"""Ways to run commands, and rows to feed them."""

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

CONCEPTS = ("tidiness", "thrift", "curiosity")
ROWS = 24


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str


def run(*words: object) -> Outcome:
    """Run `margincast WORDS` in this process."""
    from margincast.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return Outcome(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def run_program(*words: object, **environment: str) -> Outcome:
    """Run `margincast WORDS` as a program of its own."""
    command = [sys.executable, "-m", "margincast.cli.main", *map(str, words)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def persona_rows(concept: str, count: int = ROWS) -> list[dict[str, str]]:
    """`count` different persona-shaped rows, half of them matching."""
    words = ["rain", "tea", "maps", "keys", "bread", "songs", "stairs", "coins", "lamps", "wool"]
    draw = random.Random(concept)
    rows = []
    for number in range(count):
        statement = f"I {'like' if number % 2 else 'leave'} {' '.join(draw.sample(words, 3))} {number}"
        answers = (" Yes", " No") if number % 2 else (" No", " Yes")
        rows.append(
            {
                "question": f"{concept}: {statement}?",
                "statement": statement,
                "answer_matching_behavior": answers[0],
                "answer_not_matching_behavior": answers[1],
            }
        )
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
