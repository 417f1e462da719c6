"""Rewards by token, turn and length: a row per pair; a folder of its own, or a part of a forecast's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.report import profile as shown
from margincast.report.saving import Contents, saving
from margincast.results import PRESENTERS, Json, Presenter

if TYPE_CHECKING:
    from margincast.frozen.tokens.profile import RewardProfile


def _rows(profile: RewardProfile) -> list[Json]:
    return profile.rows()


def _summary(profile: RewardProfile) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"Margins after step {profile.step}, and what they owe to length"
    return title, shown.PROFILE_HEADER, shown.profile_rows(shown.profile_results(profile))


def _leave(profile: RewardProfile, folder: Path) -> Contents:
    length = shown.leave_profile(profile, folder)
    return Contents("reward_profile", {"origin": profile.origin, "step": profile.step, "length": length})


PRESENTERS.register("reward_profile")(Presenter(_rows, _summary, saving(_leave)))
