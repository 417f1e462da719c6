"""Two trainers, each in a process of its own: a step of one, a step of the other.

Nothing of a trainer's own loop is replaced: a callback holds it before every step until the other process has asked for
it. Each has its own memory, and the one that waits computes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, TextIO

from transformers import TrainerCallback

from margincast.runs.save import peak_memory_bytes


class Turns(TrainerCallback):
    """In the process that trains: does one step for every line that comes in, and answers with a line of JSON."""

    def __init__(self) -> None:
        self.answers = own_stdout()
        self.loss: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._answer()
        if not sys.stdin.readline():
            raise SystemExit("nobody asks for steps any more")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._answer()

    def _answer(self) -> None:
        print(json.dumps({"loss": self.loss, "peak": peak_memory_bytes()}), file=self.answers, flush=True)


def own_stdout() -> TextIO:
    """What was stdout, which from now on carries answers alone: the rest of the process writes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


class Side:
    """In the process that asks: a training process and its losses; `peak` is its peak memory in bytes so far."""

    def __init__(self, command: list[str]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        self.command = command
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.losses: list[float] = []
        self.peak = 0
        self._hear()  # ready for the first step

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.losses.append(self._hear()["loss"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            status, said = self.process.wait(), self.errors.read()[-2000:]
            raise RuntimeError(f"the training process {self.command} ended with status {status}: {said}")
        answer: dict[str, Any] = json.loads(line)
        self.peak = answer["peak"]
        return answer
