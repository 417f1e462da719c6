"""Run the comparisons of benchmarks/NAME.py, each a module with `rows()`, and print one table or JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
from dataclasses import asdict

import benchmarks
from benchmarks.harness import Row, ceilings
from margincast.runs.save import environment

# `forecast` has commands of its own: its bank of runs takes hours.
HARNESS = ("harness", "flops", "peers", "large", "forecast", "__main__")


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in HARNESS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--json", action="store_true", help="JSON on stdout, nothing else")
    parser.add_argument("--pairs", type=int, help="of tokens: how many pairs of each file, a fraction of them")
    arguments = parser.parse_args()
    part = {} if arguments.pairs is None else {"pairs": arguments.pairs}
    if part and arguments.name != "tokens":
        parser.error("--pairs belongs to tokens")
    machine = ceilings()
    if not arguments.json:
        print(f"machine: {', '.join(f'{name} {value:.3g}' for name, value in machine.items())}")
        print(f"{'comparison':58} {'agrees':6} {'ratio':>9} {'low':>9} {'high':>9}  {'target':9} {'ours s':>9} peer s")
    rows: list[Row] = []
    for row in importlib.import_module(f"benchmarks.{arguments.name}").rows(**part):
        rows.append(row)
        if not arguments.json:
            print(row.line(), flush=True)
    if arguments.json:
        result = {"machine": machine, "environment": environment(), "load": os.getloadavg()[0]}
        json.dump({**result, "rows": [asdict(row) for row in rows]}, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
