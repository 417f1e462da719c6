"""margincast report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from margincast.cli import options as opt


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write [default: report.html in the run's folder]")
    ] = None,
    quiet: opt.Quiet = False,
) -> None:
    """Write one self-contained HTML page for a run: figures, tables, settings and what it means.

    Example: margincast report runs/train-...
    """
    from margincast.report.sections import page_of
    from margincast.store import write_text

    path = out or run / "report.html"
    write_text(path, page_of(run))
    if not quiet:
        print(path)
