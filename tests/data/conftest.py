"""What the tests of this room share: files to read, and the real persona files where they are."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file of rows (or bytes as they are) into an empty folder, which becomes the current one."""
    monkeypatch.chdir(tmp_path)

    def to_file(name: str, *rows: object) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return to_file


@pytest.fixture(scope="session")
def persona_dir() -> Path:
    shared = Path(os.environ.get("MARGINCAST_SHARED", Path(__file__).parents[2] / "../shared"))
    folder = shared / "data" / "persona"
    if not folder.is_dir():
        pytest.skip(f"no persona files in {folder}; set MARGINCAST_SHARED")
    return folder
