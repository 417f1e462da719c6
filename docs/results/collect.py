"""Keep what a reproduction found, and show it: its records, the figures drawn from them, and a page.

python docs/results/collect.py RUN_FOLDER [--machine WORDS]   copy a run of `margincast reproduce` here
python docs/results/collect.py                                draw figures and page again from what is here
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from margincast.cli.options import InputOptions
from margincast.cli.reproduce import ReproduceOptions
from margincast.paper.scales import SCALES
from margincast.report.reproduction import COSINES, CURVES, VERDICT_HEADER, Records, verdict_rows
from margincast.runs.layout import SUMMARY
from margincast.runs.store import write_json, write_text

RESULTS = Path(__file__).parent


def collect(run: Path, results: Path, machine: str) -> Path:
    """Copy the records of `run`, a finished reproduction, into a folder of `results` named after its scale."""
    summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    target = results / summary["config"]["scale"]
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob(f"runs/*/{SUMMARY}"))]
    environment = summary["environment"]
    environment["platform"] = environment["platform"].split("-")[0]
    environment["packages"]["matplotlib"] = version("matplotlib")
    made = {
        "command": command_line(summary["config"]),
        "seeds": sorted({part["config"]["seed"] for part in parts}),
        "machine": machine,
        # Of a run that was killed, what came after; of runs side by side, the sum.
        "seconds_of_runs": round(sum(part["results"]["seconds"] for part in parts)),
    }
    # Where the persona files lie is nobody else's concern; what was in them is in the records.
    summary["config"].pop("persona_dir", None)
    write_json(target / SUMMARY, {**summary, "made": made})
    for name in (COSINES, CURVES):
        shutil.copyfile(run / name, target / name)
    return target


def command_line(config: dict[str, Any]) -> str:
    """The line that makes a run with `config`, without what it takes anyway."""
    words = ["margincast", "reproduce", config["figure"], "--scale", config["scale"]]
    defaults = {each.name: each.default for kind in (InputOptions, ReproduceOptions) for each in fields(kind)}
    defaults |= {"model": SCALES[config["scale"]].model, "persona_dir": config.get("persona_dir")}
    for name, value in config.items():
        if name not in ("figure", "scale") and value != defaults[name]:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return " ".join(words)


def draw(folder: Path, target: Path) -> dict[str, str]:
    """Draw every figure of `folder` into `target`/figures as SVG. Returns captions by name."""
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    captions = dict(Records.load(folder, summary["results"]["figures"]).draw(target))
    for path in (target / "figures").glob("*.png"):
        path.unlink()
    return captions


def page(results: Path) -> Iterator[str]:
    """The lines of the page about everything in `results`, whose figures are drawn anew."""
    yield "# The paper's claims, judged\n"
    yield (
        "What `margincast reproduce` found: its verdicts, and the figures that are drawn from the records beside them "
        "(`python docs/results/collect.py` draws them again). What every claim means and when it counts as held: "
        "[reproduce](../workflows/reproduce.md).\n"
    )
    folders = sorted(path.parent for path in results.glob(f"*/{SUMMARY}"))
    if not folders:
        yield "Nothing is collected yet. `python docs/results/collect.py RUN_FOLDER` collects a run.\n"
    for folder in folders:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        made, found, packages = summary["made"], summary["results"], summary["environment"]["packages"]
        yield f"## Scale {folder.name}\n"
        yield f"    {made['command']}\n"
        yield (
            f"{found['setting']} Made on {made['machine']}; the runs of Figures 2, 4 and 5 took "
            f"{made['seconds_of_runs'] / 60:.0f} minutes in all. torch {packages['torch']}, transformers "
            f"{packages['transformers']}, margincast {packages['margincast']}.\n"
        )
        held = [verdict["holds"] for verdict in found["verdicts"]]
        yield (
            f"Of {len(held)} claims {held.count(True)} hold, {held.count(False)} do not, {held.count(None)} are "
            "undecided.\n"
        )
        yield table(VERDICT_HEADER, verdict_rows(found["verdicts"]))
        for name, caption in draw(folder, folder).items():
            label = caption.split(":")[0]
            yield f"![{label}]({folder.name}/figures/{name}.svg)\n\n{caption}\n"


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    cells = [list(header), ["---"] * len(header), *([text.replace("|", r"\|") for text in row] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def this_machine() -> str:
    """Processor and cores, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished `margincast reproduce`")
    parser.add_argument("--machine", default=this_machine(), help="what made the run [default: this machine]")
    options = parser.parse_args()
    if options.run is not None:
        collect(options.run, RESULTS, options.machine)
    write_text(RESULTS / "index.md", "\n".join(page(RESULTS)))


if __name__ == "__main__":
    main()
