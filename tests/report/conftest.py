"""Figures and pages only show intervals: a few resamples will do."""

import pytest


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("margincast.intervals.RESAMPLES", 20)
