"""What is looked at while a real run trains? Its margins at recorded steps, and whether it is to stop there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from margincast.errors import InputError
from margincast.processes import by_first, everyone, process
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, PairSet
from margincast.runs.metrics import metric_rows
from margincast.training.checkpoints import seal
from margincast.training.recording import Recording
from margincast.training.stops import Stop, first_held

# Log-probabilities of two passes over the same model differ by rounding alone; more means another model.
REFERENCE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 2.0, torch.float16: 0.5}


class Recorder(TrainerCallback):
    """Records the pairs of `recording` at step 0, every `eval_steps` and the end. Pauses at `stop_after`, and where one
    of `stops` is met, which `stopped` then says."""

    trainer: Any

    def __init__(
        self,
        recording: Recording,
        recipe: Recipe,
        features: Features,
        stop_after: int | None,
        stops: Sequence[Stop] = (),
    ) -> None:
        self.stops = stops
        self.stopped = False
        self.recording = recording
        self.recipe = recipe
        self.features = features
        self.stop_after = stop_after

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._record(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends = (self.recipe.steps, self.stop_after)
        if state.global_step % self.recipe.eval_steps == 0 or state.global_step in ends:
            self._record(state.global_step)
            self.look(state.global_step)
        if state.global_step == self.stop_after or self.stopped:
            control.should_save = control.should_training_stop = True

    def look(self, step: int) -> None:
        """Whether to stop at `step`, which is recorded."""
        if self.stops:
            self.stopped = by_first(lambda: first_held(self.stops, self._row(step)) is not None)

    def _row(self, step: int) -> Mapping[str, Any]:
        rows = metric_rows(self.recording.trajectory(self.recipe.beta, self.recipe.loss, ""))
        return next(row for row in rows if row["step"] == step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        everyone(None)  # all have written their part
        if process() == 0:
            seal(self.recording.folder / f"checkpoint-{state.global_step}")

    def _record(self, step: int) -> None:
        measured = self.recording.evaluate(self.trainer.model, step)
        if step == 0:
            self._check_policy(measured["chosen"], measured["rejected"])
        if process() == 0:
            self.recording.keep(step, measured)
        everyone(None)  # the step is on disk for all
        if process() == 0:
            self._report()

    def _report(self) -> None:
        """Held-out metrics of the last recorded step, for the trackers of `report_to`."""
        row = metric_rows(self.recording.trajectory(self.recipe.beta, self.recipe.loss, ""))[-1]
        wanted = self.trainer.control.should_log  # the trainer takes every log for its own of this step
        self.trainer.log({name: value for name, value in row.items() if name.startswith(("eval_", "effects/"))})
        self.trainer.control.should_log = wanted

    def _check_policy(self, chosen: Tensor, rejected: Tensor) -> None:
        # Mixed precision rounds the pass at step 0, which the features, extracted before, did not go through.
        allowed = REFERENCE_TOLERANCE[torch.bfloat16 if self.recipe.bf16 else self.trainer.model.dtype]
        before = logps_of(self.features, self.recording.train, lambda split: split.policy_logps)
        for name, now, then in (
            ("chosen", chosen, before[0]),
            ("rejected", rejected, before[1]),
        ):
            gap = float((now - then).abs().max())
            if not gap <= allowed:
                raise InputError(
                    f"the model at step 0 is not that of the features: log-probabilities of {name} responses differ by "
                    f"{gap:.3g}; they belong to another model"
                )


def log_ratios_of(features: Features, recorded: PairSet) -> tuple[Tensor, Tensor] | None:
    """`Recording.begun` of a run of `features`."""
    if features.train.start_log_ratios is None:
        return None
    policy = logps_of(features, recorded, lambda split: split.policy_logps)
    reference = logps_of(features, recorded, lambda split: (split.reference_chosen, split.reference_rejected))
    return policy[0] - reference[0], policy[1] - reference[1]


def logps_of(
    features: Features, recorded: PairSet, read: Callable[[FeatureSet], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """What `read` finds of both responses, in the order of a recording: of the training pairs `recorded`, then of the
    held-out ones."""
    rows = {pair.id: index for index, pair in enumerate(features.train.pairs)}
    index = [rows[pair.id] for pair in recorded]
    train, heldout = read(features.train), read(features.heldout)
    return torch.cat([train[0][index], heldout[0]]), torch.cat([train[1][index], heldout[1]])


class ProgressBar(TrainerCallback):
    """One line on stderr: steps, loss, margin."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", margin=f"{logs['rewards/margins']:.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
