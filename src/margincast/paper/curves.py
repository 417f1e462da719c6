"""What is kept of a run for Figures 2, 4 and 5? Margin, loss and accuracy of both splits at every recorded step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from margincast.paper.scales import RunSpec
from margincast.records import PairSet, SplitTrajectory, Trajectory
from margincast.results import Json
from margincast.runs.metrics import metric_rows

QUANTITIES = {"margin": "rewards/margins", "loss": "loss", "accuracy": "rewards/accuracies"}
PREFIXES = {"train": "", "heldout": "eval_"}
DIGITS = 6


@dataclass(frozen=True)
class Curves:
    """Means over the recorded pairs of one run.

    train, heldout: by "margin", "loss" and "accuracy", one value per step
    """

    spec: RunSpec
    steps: tuple[int, ...]
    train: dict[str, tuple[float, ...]]
    heldout: dict[str, tuple[float, ...]]

    def row(self) -> Json:
        """As a row of `curves.jsonl`."""
        return {
            **asdict(self.spec),
            "steps": list(self.steps),
            **{split: {name: list(values) for name, values in getattr(self, split).items()} for split in PREFIXES},
        }

    @staticmethod
    def from_row(row: Json) -> Curves:
        names = ("K", "seed", "weights", "source", "optimizer")
        parts = {split: {name: tuple(values) for name, values in row[split].items()} for split in PREFIXES}
        return Curves(RunSpec(*(row[name] for name in names)), tuple(row["steps"]), **parts)


def curves_of(spec: RunSpec, trajectory: Trajectory) -> Curves:
    rows = metric_rows(trajectory)
    parts = {
        split: {name: tuple(_short(row[prefix + key]) for row in rows) for name, key in QUANTITIES.items()}
        for split, prefix in PREFIXES.items()
    }
    return Curves(spec, trajectory.steps, **parts)


def restricted(trajectory: Trajectory, train: PairSet) -> Trajectory:
    """`trajectory` with `train` for its training pairs, some of them: those that another run recorded."""
    place = {pair.id: index for index, pair in enumerate(trajectory.train.pairs)}
    margins = trajectory.train.margins[:, [place[pair.id] for pair in train]]
    return replace(trajectory, train=SplitTrajectory(train, margins))


def chosen(curves: Sequence[Curves], weights: str, source: str, optimizer: str = "adamw") -> dict[int, list[Curves]]:
    """The runs of one kind, by K, seeds in order."""
    found: dict[int, list[Curves]] = {}
    for one in sorted(curves, key=lambda item: (item.spec.K, item.spec.seed)):
        if (one.spec.weights, one.spec.source, one.spec.optimizer) == (weights, source, optimizer):
            found.setdefault(one.spec.K, []).append(one)
    return found


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
