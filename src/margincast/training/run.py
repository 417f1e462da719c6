"""What does training really do to every margin? A real run, recorded in the same shape as a forecast."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from margincast.errors import InputError
from margincast.models.adapter import add_adapter
from margincast.models.load import LoadedModel, untie
from margincast.passes.evaluate import Evaluator
from margincast.passes.response_pass import packing_problem
from margincast.passes.tokenize import Encoding
from margincast.processes import by_first, everyone, process, processes
from margincast.recipe.losses import refuse_length_normalized
from margincast.recipe.settings import TrainingSettings, arguments
from margincast.records import Features, FeatureSet, PairSet, Trajectory
from margincast.runs.metrics import metric_rows
from margincast.runs.store import key_of, write_jsonl
from margincast.training.recording import Recording, claim
from margincast.training.trainer import MarginTrainer, PairDataset, collate

# Log-probabilities of two passes over the same model differ by rounding alone; more means another model.
REFERENCE_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 2.0, torch.float16: 0.5}


def train_model(
    loaded: LoadedModel,
    encoding: Encoding,
    features: Features,
    settings: TrainingSettings,
    folder: Path,
    *,
    progress: bool = False,
    save_model: bool = True,
    stop_after: int | None = None,
) -> Trajectory:
    """Train `loaded` (changed in place) and record margins at step 0, every `eval_steps` and the last step.

    features: of the same pairs under the untrained model; their log-probabilities are the reference
    folder: receives `train_log.jsonl`, `model/` when `save_model`, and, while the run goes on, checkpoints and recorded
    steps from which the same call continues after an interruption. All processes of a run must share it.
    stop_after: the step at which to pause, recorded too; `folder` is left as by an interruption there

    Raises `StatedFailure` when training diverges; `InputError` when the model at step 0 is not the reference, and when
    the loss divides log-ratios by the length of responses that are longer than one token.
    """
    model = loaded.model
    loss = settings.loss
    refuse_length_normalized(loss, features.train.single_token and features.heldout.single_token)
    dtype = model.get_output_embeddings().weight.dtype
    if settings.train == "head":
        head = untie(model)
        model.requires_grad_(False)
        # A small step of the unembedding moves its entries, and logits, by less than float32 can hold.
        head.to(torch.float64).weight.requires_grad_(True)
    elif settings.train == "lora":
        model = loaded.model = add_adapter(model, settings)
    train_pairs, heldout_pairs = features.train.pairs, features.heldout.pairs
    recorded = spread(train_pairs, settings.record_train)
    rows = encoding.select(train_pairs).rows
    packed = packing_problem(model, rows) is None
    evaluator = Evaluator(
        (*encoding.select(recorded).rows, *encoding.select(heldout_pairs).rows),
        packed,
        frozen_backbone=settings.train == "head",
    )
    state = folder / "state"
    identity = by_first(lambda: _same_run(state, settings, features))
    loaded.hash = f"{loaded.hash}, trained in run {identity}"  # features cached for the old weights are not these
    what = {"all": "all weights", "head": "the unembedding, backbone frozen", "lora": "a LoRA adapter"}[settings.train]
    loss_type = loss if loss.parameters else settings.loss_type
    recording = Recording(evaluator, state, recorded, heldout_pairs)
    recorder = Recorder(recording, settings, features, stop_after)
    batch_size = len(rows) if settings.optimizer == "gd" else settings.per_device_train_batch_size * processes()
    trainer = MarginTrainer(
        model=model,
        args=arguments(settings, state, batch_size, next(model.parameters()).device.type),
        train_dataset=PairDataset(rows, features.train.reference_chosen, features.train.reference_rejected),
        data_collator=collate,
        callbacks=[recorder, *([ProgressBar()] if progress else [])],
        loss=loss,
        beta=settings.beta,
        packed=packed,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    recorder.trainer = trainer
    checkpoint = by_first(lambda: _last_checkpoint(state))
    if stop_after is None or checkpoint is None or _checkpoint_step(checkpoint) < stop_after:
        trainer.train(resume_from_checkpoint=checkpoint)
    model.get_output_embeddings().to(dtype)
    trajectory = recording.trajectory(settings.beta, loss_type, f"training of {what}")
    weights = whole_weights(model) if save_model and processes() > 1 else None
    everyone(None)  # all have read what is removed now
    if process() == 0 and trainer.state.global_step == settings.max_steps:
        write_jsonl(folder / "train_log.jsonl", [row for row in trainer.state.log_history if "loss" in row])
        if save_model:
            model.save_pretrained(folder / "model", state_dict=weights)
            loaded.tokenizer.save_pretrained(folder / "model")
        shutil.rmtree(state)
    return trajectory


def whole_weights(model: Any) -> dict[str, Any]:
    """The weights of a model that may be sharded over processes, tied ones once; process 0 has them, others nothing.

    All processes must call it: each gives its part.
    """
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: weight for name, weight in weights.items() if name in names}


def spread(pairs: PairSet, count: int) -> PairSet:
    """`count` of `pairs`, drawn evenly from every concept by a fixed seed; all when `count` is 0 or too large."""
    if count <= 0 or count >= len(pairs):
        return pairs
    queues = []
    for concept in pairs.concepts:
        members = [pair.id for pair in pairs if pair.concept == concept]
        random.Random(concept).shuffle(members)
        queues.append(members)
    ranked = [pair for rank in range(max(map(len, queues))) for queue in queues for pair in queue[rank : rank + 1]]
    chosen = set(ranked[:count])
    return PairSet(tuple(pair for pair in pairs if pair.id in chosen))


class Recorder(TrainerCallback):
    """Records the pairs of `recording` at step 0, every `eval_steps` and the end. Pauses at `stop_after`."""

    trainer: Any

    def __init__(
        self, recording: Recording, settings: TrainingSettings, features: Features, stop_after: int | None
    ) -> None:
        self.recording = recording
        self.settings = settings
        self.features = features
        self.stop_after = stop_after

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._record(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends = (self.settings.max_steps, self.stop_after)
        if state.global_step % self.settings.eval_steps == 0 or state.global_step in ends:
            self._record(state.global_step)
        if state.global_step == self.stop_after:
            control.should_save = control.should_training_stop = True

    def _record(self, step: int) -> None:
        chosen, rejected = self.recording.evaluate(self.trainer.model, step)
        if step == 0:
            self._check_reference(chosen, rejected)
        if process() == 0:
            self.recording.keep(step, chosen, rejected)
        everyone(None)  # the step is on disk for all
        if process() == 0:
            self._report()

    def _report(self) -> None:
        """Held-out metrics of the last recorded step, for the trackers of `report_to`."""
        row = metric_rows(self.recording.trajectory(self.settings.beta, self.settings.loss, ""))[-1]
        wanted = self.trainer.control.should_log  # the trainer takes every log for its own of this step
        self.trainer.log({name: value for name, value in row.items() if name.startswith("eval_")})
        self.trainer.control.should_log = wanted

    def _check_reference(self, chosen: Tensor, rejected: Tensor) -> None:
        # Mixed precision rounds the pass at step 0, which the reference, extracted before, did not go through.
        allowed = REFERENCE_TOLERANCE[torch.bfloat16 if self.settings.bf16 else self.trainer.model.dtype]
        for name, now, before in (
            ("chosen", chosen, self._reference("reference_chosen")),
            ("rejected", rejected, self._reference("reference_rejected")),
        ):
            gap = float((now - before).abs().max())
            if not gap <= allowed:
                raise InputError(
                    f"the model at step 0 is not the reference: log-probabilities of {name} responses differ by "
                    f"{gap:.3g}; the features belong to another model"
                )

    def _reference(self, name: str) -> Tensor:
        rows = {pair.id: index for index, pair in enumerate(self.features.train.pairs)}
        train: Tensor = getattr(self.features.train, name)[[rows[pair.id] for pair in self.recording.train]]
        heldout: Tensor = getattr(self.features.heldout, name)
        return torch.cat([train, heldout])


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


def _same_run(state: Path, settings: TrainingSettings, features: Features) -> str:
    """Make `state` the folder of this very run: what another run left there is removed. Returns the run's identity."""
    loss = settings.loss
    # A loss of one's own has no more than a name: what it does at some margins tells two of the same name apart.
    probe = loss.value(torch.linspace(-4.0, 4.0, 17, dtype=torch.float64)).tolist()
    named = {**asdict(settings), "loss_type": loss.name, "loss": probe, "processes": processes()}
    identity = key_of([named, features.model_hash, *(_fingerprint(s) for s in (features.train, features.heldout))])
    claim(state, identity)
    return identity


def _fingerprint(split: FeatureSet) -> Sequence[Any]:
    return [split.pairs.fingerprint, [list(ids) for ids in (*split.chosen_ids, *split.rejected_ids)]]


def _checkpoint_step(folder: str) -> int:
    return int(folder.rpartition("-")[2])


def _last_checkpoint(state: Path) -> str | None:
    """The newest checkpoint that was written whole (its last file, the trainer's state, can be read)."""
    for folder in sorted(state.glob("checkpoint-*"), key=lambda path: -_checkpoint_step(path.name)):
        try:
            json.loads((folder / "trainer_state.json").read_text())
            for path in folder.glob("*.safetensors"):
                load_file(path)
        except (OSError, ValueError, SafetensorError):
            shutil.rmtree(folder)
            continue
        return str(folder)
    return None
