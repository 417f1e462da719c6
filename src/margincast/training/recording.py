"""How is a real run recorded? As log-probabilities of the recorded pairs, written to disk at every recorded step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from margincast.errors import StatedFailure
from margincast.passes.evaluate import Evaluator
from margincast.recipe.losses import Loss, get_loss
from margincast.records import PairSet, SplitTrajectory, Trajectory
from margincast.runs.store import write_json, write_tensors
from margincast.training.meter import EffectMeter
from margincast.training.step import counted_lengths

MARKER = "run.json"


@dataclass
class Recording:
    """The steps of one run recorded so far, in `folder`.

    evaluator: of the rows of `train`, then those of `heldout`
    meter: of what else is measured, if anything is
    begun: log(pi / pi_ref) of chosen and rejected responses at step 0, (pairs,) each; None where the run starts from
    its reference
    kept: what was recorded or read by this process, so that no step is read twice
    """

    evaluator: Evaluator
    folder: Path
    train: PairSet
    heldout: PairSet
    begun: tuple[Tensor, Tensor] | None = None
    meter: EffectMeter | None = None
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def begin(self, model: Any) -> None:
        """Before the first recorded step, and after an interruption, with the model of step 0."""
        if self.meter is not None:
            self.meter.begin(model)

    def evaluate(self, model: Any, step: int) -> dict[str, Tensor]:
        """`chosen`, `rejected`: log-probabilities under `model`, (pairs,) each; and what the meter measures.

        Raises `StatedFailure` on divergence.
        """
        chosen, rejected = self.evaluator(model)
        if not bool((chosen + rejected).isfinite().all()):
            raise StatedFailure(
                f"training diverged: log-probabilities at step {step} are not finite; lower learning_rate"
            )
        measured = {} if self.meter is None else self.meter.measure(model)
        return {"chosen": chosen, "rejected": rejected, **measured}

    def keep(self, step: int, measured: dict[str, Tensor]) -> None:
        self.kept[step] = measured
        write_tensors(self._path(step), self.kept[step])

    def has(self, step: int) -> bool:
        return self._path(step).is_file()

    def forget_after(self, step: int) -> None:
        """Drop the steps after `step`, from which an interrupted run goes on and records them again."""
        for path in self._paths():
            if _step(path) > step:
                path.unlink()
                self.kept.pop(_step(path), None)

    def missing(self, steps: Iterable[int]) -> Iterator[int]:
        """Those of `steps` that are not recorded, or cannot be read."""
        for step in steps:
            try:
                self._read(step)
            except (OSError, ValueError, SafetensorError):
                yield step

    def _read(self, step: int) -> dict[str, Tensor]:
        if step not in self.kept:
            tensors, pairs = load_file(self._path(step)), len(self.train) + len(self.heldout)
            if any(tuple(tensors.get(name, torch.zeros(0)).shape) != (pairs,) for name in ("chosen", "rejected")):
                raise ValueError(f"step {step} is of other pairs")
            if self.meter is not None and not set(self.meter.names) <= tensors.keys():
                raise ValueError(f"step {step} lacks what else is measured")
            self.kept[step] = tensors
        return self.kept[step]

    def trajectory(self, beta: float, loss_type: str | Loss, origin: str) -> Trajectory:
        """The recorded steps. Step 0 is the reference, or `begun` away from it."""
        steps = [_step(path) for path in self._paths()]
        tensors = [self._read(step) for step in steps]
        # Step 0 went through the same packs as every other step: against it, rounding of the reference cancels.
        loss = get_loss(loss_type, beta, without_reference=True)
        referred = 0.0 if loss.reference_free else 1.0
        rewards = []
        for number, side in enumerate(("chosen", "rejected")):
            ratios = torch.stack([item[side] - referred * tensors[0][side] for item in tensors])
            if self.begun is not None:
                ratios = ratios + referred * self.begun[number]
            rewards.append(beta * ratios / counted_lengths(self.evaluator.rows, loss)[number])
        chosen, rejected = rewards
        margins, cut = chosen - rejected, len(self.train)
        return Trajectory(
            steps=tuple(steps),
            train=SplitTrajectory(self.train, margins[:, :cut], chosen[:, :cut]),
            heldout=SplitTrajectory(self.heldout, margins[:, cut:], chosen[:, cut:]),
            beta=beta,
            loss_type=loss_type,
            origin=origin,
            effects=None if self.meter is None else self.meter.effects(tensors, beta, loss),
        )

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:07d}.safetensors"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))


def belongs(folder: Path, identity: str) -> bool:
    """Whether `folder` is that of the run called `identity`."""
    try:
        return bool(json.loads((folder / MARKER).read_text())["identity"] == identity)
    except (OSError, ValueError, KeyError):
        return False


def claim(folder: Path, identity: str) -> None:
    """Make `folder` that of the run called `identity`: what another run left there is removed."""
    if not belongs(folder, identity):
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / MARKER, {"identity": identity})


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
