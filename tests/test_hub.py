"""A Hub that does not answer is asked once, briefly; what it would have given is then read from its cache alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants, utils

from margincast import hub
from margincast.data import load_pairs
from margincast.errors import StatedFailure
from margincast.models import load_model


class Session:
    """Of the Hub's library, as far as it is asked here."""

    def __init__(self, outcome: object) -> None:
        self.outcome, self.asked = outcome, 0

    def head(self, address: str, timeout: float) -> object:
        self.asked += 1
        assert timeout <= hub.SECONDS
        if isinstance(self.outcome, float):
            time.sleep(self.outcome)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def get(self, *_: object, **__: object) -> object:
        """Of older libraries, which look at HF_HUB_OFFLINE when a session is made."""
        raise ConnectionError("no route")


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    found = Session(OSError("no route"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(utils, "get_session", lambda: found)
    monkeypatch.chdir(tmp_path)
    return found


def test_any_answer_is_one_and_no_answer_in_time_is_none(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hub.reachable()
    session.outcome = 503
    assert hub.reachable()
    monkeypatch.setattr(hub, "SECONDS", 0.02)
    session.outcome = 0.2
    assert not hub.reachable()


def test_data_and_model_that_cannot_be_fetched_are_a_line_at_once(session: Session) -> None:
    begin = time.perf_counter()
    with pytest.raises(StatedFailure, match=r"^nosuch/data:train .*the Hub cannot be reached.*folder /.*/nosuch/data$"):
        load_pairs("nosuch/data")
    with pytest.raises(StatedFailure, match=r"^model 'nosuch/one' .*the Hub cannot be reached.*folder /.*/nosuch/one$"):
        load_model("nosuch/one")
    with pytest.raises(StatedFailure, match=r"the Hub cannot be reached.*; give a folder"):
        load_pairs("persona:calm")
    assert time.perf_counter() - begin < 10  # half a minute for each before
    assert session.asked == 3
    assert not constants.HF_HUB_OFFLINE


def test_offline_nothing_is_asked(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StatedFailure, match=r"HF_HUB_OFFLINE is set: only its cache is read"):
        load_model("nosuch/one")
    assert session.asked == 0
    assert constants.HF_HUB_OFFLINE
