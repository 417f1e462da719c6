"""Help comes at once, and shows how to begin."""

import subprocess
import sys
import time

import pytest

import margincast as mc
from tests.cli.helpers import run, run_program

COMMANDS = [line.split()[0] for line in run("--help").out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]


def test_help_takes_less_than_a_second() -> None:
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        outcome = run_program("--help")
        seconds.append(time.perf_counter() - begin)
        assert outcome.status == 0
        assert "margincast demo" in outcome.out
    assert min(seconds) < 1.0


def test_no_command_imports_anything_heavy_to_say_how_it_is_used() -> None:
    program = (
        "import sys\n"
        "from margincast.cli.main import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'matplotlib', 'pandas') if name in sys.modules])"
    )
    for command in COMMANDS:
        done = subprocess.run([sys.executable, "-c", program, command], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", command


def test_every_command_is_there() -> None:
    assert {"demo", "inspect", "forecast", "train", "compare", "report"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_options_of_every_command(command: str) -> None:
    outcome = run(command, "--help")
    assert (outcome.status, outcome.err) == (0, "")
    examples = [line.strip() for line in outcome.out.splitlines() if line.strip().startswith("Example: margincast")]
    assert len(examples) == 1
    assert examples[0].startswith(f"Example: margincast {command}")
    options = {word for line in outcome.out.splitlines() for word in line.split()[:1] if word.startswith("--")}
    results = set() if command == "cache" else {"--out"}  # it has none to write
    assert {"--json", "--quiet", "--config", *results} <= options


def test_no_words_is_a_request_for_help() -> None:
    assert run() == run("--help") == run("-h")


def test_version() -> None:
    assert run("--version").out == f"margincast {mc.__version__}\n"
