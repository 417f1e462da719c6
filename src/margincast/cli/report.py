"""margincast report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from margincast.cli.options import OutputOptions
from margincast.cli.signature import Fixed


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run")],
    output: Annotated[OutputOptions, Fixed({}, without=("out", "resume"))],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The .html file to write, or a folder [default: the run's]"),
    ] = None,
) -> None:
    """Write one self-contained HTML page for a run: figures, tables, settings and what it means.

    Example: margincast report runs/train-...
    """
    import json

    from margincast.report.figures import run_curves, save_figure
    from margincast.report.sections import page_of, read_summary
    from margincast.runs.load import load_run
    from margincast.runs.store import write_text

    # A run recorded inside another trainer (`MarginCallback`) comes without figures.
    if read_summary(run)["command"] in ("forecast", "train") and not (run / "figures").exists():
        save_figure(run_curves(load_run(run).trajectory), run / "figures", "curves")
    target = out or run
    path = target if target.suffix.lower() in (".html", ".htm") else target / "report.html"
    write_text(path, page_of(run))
    if output.json:
        print(json.dumps(read_summary(run), indent=2, ensure_ascii=False))
    elif not output.quiet:
        print(path)
