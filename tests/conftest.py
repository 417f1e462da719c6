"""What all tests share: reproducible property tests, the folder of shared data, tiny seeded models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# As the command line does, before torch is loaded: idle threads sleep, so that a busy machine stays usable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REPOSITORY = Path(__file__).resolve().parents[1]

# A loaded machine must not fail a test; the same examples are drawn at every run.
settings.register_profile("margincast", deadline=None, derandomize=True)
settings.load_profile("margincast")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data (persona files, real pairs), beside the repository or at $MARGINCAST_SHARED."""
    folder = Path(os.environ.get("MARGINCAST_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data" / "persona").is_dir():
        pytest.skip(f"the shared data are not at {folder}; set MARGINCAST_SHARED")
    return folder
