"""What would the run have done with other training pairs? Exactly, by running the edited data again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from margincast.dynamics.forecast import Forecast
from margincast.records import Features


@dataclass(frozen=True)
class Edit:
    """weights: (N,) float64, 0 for a pair that is dropped, 2 for one that is there twice;  flipped: (N,) bool"""

    weights: Tensor
    flipped: Tensor


def drop(pairs: int, rows: Sequence[int] | Tensor) -> Edit:
    """Leave out `rows` of `pairs` training pairs."""
    raise NotImplementedError


def flip(pairs: int, rows: Sequence[int] | Tensor) -> Edit:
    """Swap chosen and rejected of `rows`."""
    raise NotImplementedError


def duplicate(pairs: int, rows: Sequence[int] | Tensor) -> Edit:
    """Have `rows` twice."""
    raise NotImplementedError


def rerun(features: Features, edit: Edit, **settings: Any) -> Forecast:
    """The forecast of the edited data."""
    raise NotImplementedError
