"""The real model and real persona data, once for all `real` tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from margincast.models.load import default_cache_dir


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Where the default model lies or will lie: the same place the command line uses."""
    return Path(os.environ.get("MARGINCAST_CACHE_DIR", default_cache_dir()))
