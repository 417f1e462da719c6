"""What does training really do to every margin? A real run, recorded in the same shape as a forecast."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from margincast.errors import InputError
from margincast.models.load import LoadedModel
from margincast.passes.evaluate import Evaluator
from margincast.passes.response_pass import packing_problem
from margincast.passes.tokenize import Encoded, Encoding
from margincast.processes import by_first, everyone, process, processes
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, Trajectory
from margincast.runs.layout import LOCK, STATE
from margincast.runs.store import key_of, write_jsonl
from margincast.training.checkpoints import last_checkpoint, step_of
from margincast.training.prepare import make_ready, prepared
from margincast.training.recorder import ProgressBar, Recorder, log_ratios_of
from margincast.training.recording import Recording, claim
from margincast.training.stops import stops_of
from margincast.training.trainer import MarginTrainer, PairDataset, arguments, collate
from margincast.training.watch import Watch, watched

TRAINED = {"all": "all weights", "head": "the unembedding, backbone frozen", "lora": "a LoRA adapter"}


def train_model(
    loaded: LoadedModel,
    encoding: Encoding,
    features: Features,
    recipe: Recipe,
    folder: str | Path,
    *,
    progress: bool = False,
    save_model: bool = True,
    stop_after: int | None = None,
    keep_state: bool = False,
    watch: Watch | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> Trajectory:
    """Train `loaded` (changed in place) and record margins at step 0, every `eval_steps` and the last step.

    features: of the same pairs under the untrained model; its log-probabilities are the reference, those without the
    adapter where it comes with a trained one
    folder: receives `train_log.jsonl`, `model/` when `save_model`, and, while the run goes on, checkpoints and recorded
    steps from which the same call continues after an interruption. All processes of a run must share it.
    stop_after: the step at which to pause, recorded too; `folder` is left as by an interruption there
    keep_state: leave what an interrupted run needs, for a caller that has more to write before the run is finished and
    then calls `forget_state`;  watch: for what else, and when to stop: a run that stops early keeps its state
    say: gets a line for every checkpoint that could not be used, and where an adapter that was there trains on

    Raises `StatedFailure` when training diverges; `InputError` when the model at step 0 is not that of `features`, when
    another process trains in `folder`, and for a `watch` that this run cannot have.
    """
    folder, recipe, watch = Path(folder), recipe.for_pairs(len(features.train.pairs)), watch or Watch()
    recipe.check_trainable()
    dtype = loaded.model.get_output_embeddings().weight.dtype
    model = prepared(loaded, recipe, say)
    recorded, state = features.train.pairs.spread(recipe.recorded_train), folder / STATE
    rows = encoding.select(features.train.pairs).rows
    packed = packing_problem(model, rows) is None
    followed = (*encoding.select(recorded).rows, *encoding.select(features.heldout.pairs).rows)
    evaluator = Evaluator(followed, packed, frozen_backbone=recipe.train == "head")
    meter = watched(loaded, encoding.select(features.heldout.pairs).rows, features, recipe, watch, packed)
    with claimed(folder):
        identity = by_first(lambda: _same_run(state, recipe, features, watch))
        loaded.hash = f"{loaded.hash}, trained in run {identity}"  # features cached for the old weights are not these
        begun = log_ratios_of(features, recorded)
        recording = Recording(evaluator, state, recorded, features.heldout.pairs, begun, meter)
        recorder = Recorder(recording, recipe, features, stop_after, stops_of(watch.stop_if))
        recorder.trainer = trainer = trainer_of(model, rows, features, recipe, state, packed)
        make_ready(trainer, rows, say)
        if trainer.is_fsdp_enabled:
            watch.refuse_with_fsdp()
        for callback in (recorder, ProgressBar()) if progress else (recorder,):
            trainer.add_callback(callback)
        recording.begin(model)
        carry_out(trainer, recorder, stop_after or recipe.steps, say)
    model.get_output_embeddings().to(dtype)
    loss_type = recipe.loss if recipe.loss.parameters else recipe.loss_type
    trajectory = recording.trajectory(recipe.beta, loss_type, f"training of {TRAINED[recipe.train]}")
    finish(trainer, loaded, folder, save_model, recorder.stopped, keep_state)
    return trajectory


def trainer_of(
    model: Any, rows: Sequence[Encoded], features: Features, recipe: Recipe, state: Path, packed: bool
) -> MarginTrainer:
    """The trainer of a run, silent; `rows`: of the training pairs of `features`."""
    batch_size = len(rows) if recipe.rule.whole_batch else recipe.per_device_train_batch_size * processes()
    trainer = MarginTrainer(
        model=model,
        args=arguments(recipe, state, batch_size, next(model.parameters()).device.type),
        train_dataset=PairDataset(rows, features.train.reference_chosen, features.train.reference_rejected),
        data_collator=collate,
        recipe=recipe,
        packed=packed,
        from_reference=features.train.start_log_ratios is None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def finish(
    trainer: MarginTrainer, loaded: LoadedModel, folder: Path, save_model: bool, stopped: bool, keep_state: bool
) -> None:
    """Write the log and, with `save_model`, the model of a run that has taken its last step, or stopped as asked.

    keep_state: whether what an interrupted run needs stays, as it does in a run that stopped
    """
    weights = whole_weights(loaded.model) if save_model and processes() > 1 else None
    everyone(None)  # all have read what is removed now
    if process() == 0 and (stopped or trainer.state.global_step == trainer.recipe.steps):
        write_jsonl(folder / "train_log.jsonl", [row for row in trainer.state.log_history if "loss" in row])
        if save_model:
            loaded.model.save_pretrained(folder / "model", state_dict=weights)
            loaded.tokenizer.save_pretrained(folder / "model")
    if not keep_state and trainer.state.global_step == trainer.recipe.steps:
        forget_state(folder)


def carry_out(trainer: MarginTrainer, recorder: Recorder, end: int, say: Callable[[str], None]) -> None:
    """Train to step `end`, or where a condition to stop is met, from the last checkpoint that is whole."""
    recording = recorder.recording

    def missing(step: int) -> Iterator[int]:
        return recording.missing(each for each in trainer.recipe.recorded if each <= step)

    checkpoint = by_first(lambda: last_checkpoint(recording.folder, missing, say))
    step = 0 if checkpoint is None else step_of(checkpoint)
    if checkpoint is not None and step >= trainer.recipe.steps and trainer.is_fsdp_enabled:
        # All steps were taken, and the weights lie in parts that only training puts together.
        checkpoint, step = None, 0
    if process() == 0:
        recording.forget_after(-1 if checkpoint is None else step)
    everyone(None)
    if checkpoint is not None and step > 0:
        recorder.look(step)
    if checkpoint is None or (step < end and not recorder.stopped):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    elif step >= trainer.recipe.steps or recorder.stopped:
        # Stopped after its last step: one step more would be one too many.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`. Raises `InputError` where one is at work there."""
    if process() != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process trains in {folder}; wait for it, or give another folder") from error
    try:
        yield
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)


def forget_state(folder: Path) -> None:
    """Remove what an interrupted run needs: the run in `folder` is finished."""
    if process() == 0:
        shutil.rmtree(folder / STATE, ignore_errors=True)


def whole_weights(model: Any) -> dict[str, Any]:
    """The weights of a model that may be sharded over processes, tied ones once; process 0 has them, others nothing.

    All processes must call it: each gives its part.
    """
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: weight for name, weight in weights.items() if name in names}


def _same_run(state: Path, recipe: Recipe, features: Features, watch: Watch) -> str:
    """Make `state` the folder of this very run: what another run left there is removed. Returns the run's identity."""
    loss = recipe.loss
    # A loss of one's own has no more than a name: what it does at some margins tells two of the same name apart.
    probe = loss.value(torch.linspace(-4.0, 4.0, 17, dtype=torch.float64)).tolist()
    named = {**_named(recipe), "loss_type": loss.name, "loss": probe, "processes": processes()}
    pairs = (_fingerprint(split) for split in (features.train, features.heldout))
    identity = key_of([named, features.model_hash, *pairs, *watch.fingerprint])
    claim(state, identity)
    return identity


def _named(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings; an optimizer of one's own as what it says of itself."""
    return {**asdict(recipe), "optimizer": repr(recipe.rule)}


def _fingerprint(split: FeatureSet) -> Sequence[Any]:
    return [split.pairs.fingerprint, [list(ids) for ids in (*split.chosen_ids, *split.rejected_ids)]]
