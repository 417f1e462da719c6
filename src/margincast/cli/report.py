"""margincast report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from margincast.cli import options as opt


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The .html file to write, or a folder [default: the run's]"),
    ] = None,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Write one self-contained HTML page for a run: figures, tables, settings and what it means.

    Example: margincast report runs/train-...
    """
    import json

    from margincast.report.sections import page_of, read_summary
    from margincast.store import write_text

    target = out or run
    path = target if target.suffix.lower() in (".html", ".htm") else target / "report.html"
    write_text(path, page_of(run))
    if json_:
        print(json.dumps(read_summary(run), indent=2, ensure_ascii=False))
    elif not quiet:
        print(path)
