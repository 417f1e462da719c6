"""`python -m tests.golden`: run the cases, say what is not as it was."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.golden import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden")
    parser.add_argument("case", nargs="*", help="only these cases")
    parser.add_argument("--tier", choices=("fast", "slow"), default="fast")
    parser.add_argument("--exact", action="store_true", help="to the last bit")
    parser.add_argument("--write", action="store_true", help="replace the values")
    parser.add_argument("--add", action="store_true", help="keep the values, and add those that are new")
    given = parser.parse_args()
    cases = {name: commands for name, commands in run.cases(given.tier).items() if not given.case or name in given.case}
    path = run.VALUES / f"{given.tier}.json"
    values = run.kept(given.tier) if path.is_file() else {}
    wrong = 0
    for name, commands in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            now = run.results_of(commands, Path(folder))
        if given.write:
            values[name] = now
            print(f"{name}: {len(now)} values")
            continue
        said = run.differences(name, values[name], now, given.exact)
        if given.add:
            values[name] = now | values[name]
            said = [line for line in said if not line.endswith(": new")]
        wrong += bool(said)
        print(f"{name}: {'as it was' if not said else f'{len(said)} differences'}", *said[:8], sep="\n    ", flush=True)
    if given.write or given.add:
        path.write_text(json.dumps(values, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
