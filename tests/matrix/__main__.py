"""Does margincast work with the lowest versions it asks for, and with Colab's? `python -m tests.matrix [NAME ...]`

Each environment is a virtual one in build/matrix. Only what pyproject.toml asks for is installed in it, at the versions
of its list: margincast itself runs from the source folder, not installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from dataclasses import dataclass

from tests.matrix.requirements import ROOT, asked

LOWEST, COLAB = "constraints-lowest.txt", "tests/matrix/colab.txt"


@dataclass(frozen=True)
class Environment:
    """python: the program;  torch: its version;  versions: the list that holds the others, "" for the newest there are
    besides: installed beside what margincast asks for;  tests: those that run, by default the quick ones
    """

    python: str
    torch: str
    versions: str
    default: bool = True
    besides: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


# What these two releases fail at. Tried without margincast, a tiny Llama and four rows in memory: TRL 1.0 makes the
# reference of a model in memory from its name, which is empty, precomputed or not (OSError: no configuration
# of ''; a model from a folder works). TRL 1.8 with precompute_ref_log_probs reads back a cache file that is not there
# for rows in memory (FileNotFoundError of a temporary .arrow file in _precompute_ref_logps, called by
# DPOTrainer.__init__), with a model from a folder too. Prompt tuning was not tried so.
IN_TRL = ("tests/training/test_callback.py", "tests/training/test_packed_trl.py")
IN_TRL += ("-k", "not precomputed and not PROMPT_TUNING")
# The package index has CUDA builds of torch for x86, gigabytes each: what has no CPU build at hand runs by name only.
ENVIRONMENTS = {
    "lowest": Environment("python3.11", "2.13.0", LOWEST),
    "colab": Environment("python3.11", "2.13.0", COLAB),
    "trl1.0": Environment("python3.11", "2.13.0", "", besides=("trl==1.0.0", "transformers<5"), tests=IN_TRL),
    "trl1.8": Environment("python3.11", "2.13.0", "", besides=("trl==1.8.0",), tests=IN_TRL),
    "oldest": Environment("python3.10", "2.6.0", LOWEST, default=False),
    "python3.12": Environment("python3.12", "2.13.0", "constraints.txt", default=False),
    "python3.13": Environment("python3.13", "2.13.0", "constraints.txt", default=False),
}
# These compare with TRL, which asks for newer data sets than the lowest, or need the tools of `make test`.
APART = (
    "tests/test_api.py", "tests/test_site.py", "tests/test_notebooks.py", "tests/test_wheel.py", "tests/golden",
    "tests/real", "tests/data/test_shapes.py", "tests/recipe/test_loss_family.py", "tests/report/test_browser.py",
    "tests/training/test_callback.py", "tests/training/test_packed_trl.py", "tests/training/test_ref_logps.py",
    "tests/training/test_trl_parity.py",
)  # fmt: skip
NOT_TRL = "not to_trl_and_back and not what_trl_has_and_a_recipe_has_not and not files_for_trl"
FEW = ("tests/frozen/engine/test_fused.py", "tests/models/test_load.py", "tests/runs", "tests/data/test_split.py")


def run(name: str, few: bool) -> None:
    environment = ENVIRONMENTS[name]
    folder = ROOT / "build" / "matrix" / name
    python = folder / "bin" / "python"
    if not python.exists():
        call(environment.python, "-m", "venv", str(folder))
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    listed = ["-c", environment.versions] if environment.versions else []
    call(*install, f"torch=={environment.torch}", *listed)
    tools = ["pytest", "pytest-xdist", "hypothesis", "scikit-learn"]
    call(*install, *listed, *asked("fast", "lora"), *environment.besides, *tools)
    call(str(python), "-m", "tests.matrix.smoke")
    quick = FEW if few else ("tests", *(f"--ignore={path}" for path in APART), "-k", NOT_TRL)
    tests = environment.tests or quick
    call(str(python), "-m", "pytest", "-q", "-m", "not real", "-n", "2", "--dist", "worksteal", *tests)


def call(*command: str) -> None:
    """Run `command` in the source folder, as it lies, with nothing of this environment's."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PIP_CONSTRAINT", "VIRTUAL_ENV")}
    paths = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    subprocess.run(command, cwd=ROOT, env=kept | paths, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(ENVIRONMENTS)}")
    parser.add_argument("--few", action="store_true", help="the smoke test and a few of the quick tests")
    given = parser.parse_args()
    unknown = set(given.names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"no such environment: {', '.join(sorted(unknown))}")
    for name in given.names or [name for name, each in ENVIRONMENTS.items() if each.default]:
        begin = time.perf_counter()
        print(f"== {name}", flush=True)
        run(name, given.few)
        print(f"== {name}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
