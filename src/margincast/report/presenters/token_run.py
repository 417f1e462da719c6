"""A forecast of responses of many tokens: what every run leaves, and its rewards by token, turn and length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.decision import verdict
from margincast.report.presenters import run as of_runs
from margincast.report.profile import leave_profile
from margincast.report.saving import Contents, saving
from margincast.results import PRESENTERS, Presenter

if TYPE_CHECKING:
    from margincast.frozen.tokens.forecast import TokenForecast


def _leave(forecast: TokenForecast, folder: Path) -> Contents:
    contents = of_runs.leave(forecast, folder)
    length = leave_profile(forecast.reward_profile(), folder)
    judged = verdict(forecast, length).as_dict()
    return replace(contents, results={**contents.results, "length": length, "verdict": judged})


PRESENTERS.register("token_run")(Presenter(of_runs.rows, of_runs.summary, saving(_leave)))
