"""What does a forecast cost beside the training that it foretells? Processor time of the commands, one after the other.

    MARGINCAST_PERSONA_DIR=... python -m benchmarks.forecast.cost [DATA [FLAGS OF TRAINING ...]]

In a cache of its own: features alone (`--pilot 0`), the forecast with its rehearsal, which finds them there, and the
training, which finds them too. A training without a forecast makes the features itself, for its reference.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path


def seconds(*words: str) -> float:
    """Processor time of one command, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "margincast", *words, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.cost", description=__doc__)
    parser.add_argument("data", nargs="?", default="persona:k4", help="DATA of `margincast train`")
    known, flags = parser.parse_known_args()
    data = known.data
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        seconds("demo", "--help")  # everything compiled
        common = (data, *flags, "--bf16", "--cache_dir", str(cache))
        forecast = (*common, "--backbone", "trained")
        load = seconds("inspect", "traits", "--cache_dir", str(cache), "--out", f"{folder}/load")  # the model is there
        features = seconds("forecast", *forecast, "--pilot", "0", "--out", f"{folder}/features")
        whole = seconds("forecast", *forecast, "--out", f"{folder}/forecast")
        training = seconds("train", *common, "--out", f"{folder}/train")
    print(f"{' '.join([data, *flags])}: processor seconds: model {load:.0f}; features only {features:.0f};")
    print(f"with a rehearsal, features there, {whole:.0f}; training, features there, {training:.0f}")
    print(f"forecast / training, features there for both: {whole / training:.1%}")
    print(f"(features + forecast) / (features + training): {(features + whole) / (features + training):.1%}")


if __name__ == "__main__":
    main()
