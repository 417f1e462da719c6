"""The numbers of `values/fast.json`; the slow tier is run by hand, before and after a wall is moved."""

from pathlib import Path

import pytest

from tests.golden import run


@pytest.fixture(scope="module")
def values() -> dict[str, dict[str, run.Value]]:
    return run.kept("fast")


@pytest.mark.parametrize("case", list(run.cases("fast")))
def test_numbers_are_as_they_were(
    case: str, tmp_path: Path, values: dict[str, dict[str, run.Value]], monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    cache = tmp_path_factory.getbasetemp() / "golden-cache"
    monkeypatch.setenv("MARGINCAST_CACHE_DIR", str(cache))
    assert run.differences(case, values[case], run.results_of(run.cases("fast")[case], tmp_path), exact=False) == []
