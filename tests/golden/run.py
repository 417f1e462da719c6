"""How is a case run and compared? In a folder of its own, by the command line, number by number."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

from tests.golden.cases import HH, MENDED, TIERS, Commands
from tests.golden.digest import Value, digest

VALUES = Path(__file__).parent / "values"
# Rounding of float32 passes and of sums in another order, on another processor; a number below `SMALL` is none.
RELATIVE, SMALL = 1e-4, 1e-9
ROWS = 12  # pairs of many tokens


def results_of(commands: Commands, folder: Path) -> dict[str, Value]:
    """Run `commands` in `folder`; what they left there. Raises `RuntimeError` with what a command said if it failed."""
    from margincast.cli.main import main

    folder.mkdir(parents=True, exist_ok=True)
    if any("hh.jsonl" in words for words in commands):
        rows = sorted(HH.read_text(encoding="utf-8").splitlines(), key=len)[:ROWS]  # the tiny model reads 256 tokens
        (folder / "hh.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    here = Path.cwd()
    for words in commands:
        said = io.StringIO()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                main([*words, "--quiet"])
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(f"{' '.join(words)}: {said.getvalue()}") from None
        finally:
            os.chdir(here)
    return digest(folder)


def kept(tier: str) -> dict[str, dict[str, Value]]:
    """The values of a tier as they were written."""
    values: dict[str, dict[str, Value]] = json.loads((VALUES / f"{tier}.json").read_text(encoding="utf-8"))
    return values


def differences(case: str, before: dict[str, Value], now: dict[str, Value], exact: bool) -> list[str]:
    """A line for everything that is not as it was."""
    said = [f"{name}: gone" for name in before if name not in now]
    said += [f"{name}: new" for name in now if name not in before]
    relative = 0.0 if exact else MENDED.get(case, (RELATIVE, ""))[0]
    # Sums that cancel are as exact as what they are sums of.
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if isinstance(old, (int, float)) and isinstance(new, (int, float)) and not isinstance(old, bool):
            size = before.get(f"{name.rpartition(':')[0]}:size", old)
            scale = max(abs(old), abs(size) if isinstance(size, (int, float)) else 0.0, 0.0 if exact else SMALL)
            if abs(new - old) > relative * scale:
                said.append(f"{name}: {old!r} -> {new!r}")
        elif old != new:
            said.append(f"{name}: {old!r} -> {new!r}")
    return sorted(said)


def cases(tier: str) -> dict[str, Commands]:
    return TIERS[tier]
