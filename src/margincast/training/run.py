"""What does training really do to every margin? A real run, recorded in the same shape as a forecast."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from margincast.errors import InputError
from margincast.models.adapter import has_adapter, merged_model, with_adapter
from margincast.models.load import LoadedModel, untie
from margincast.models.quantised import refuse_training_quantised
from margincast.passes.evaluate import Evaluator
from margincast.passes.response_pass import packing_problem
from margincast.passes.tokenize import Encoded, Encoding
from margincast.processes import DEEPSPEED, by_first, everyone, process, processes
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, PairSet, Trajectory
from margincast.runs.layout import LOCK, STATE
from margincast.runs.metrics import metric_rows
from margincast.runs.store import key_of, write_jsonl
from margincast.training.checkpoints import last_checkpoint, seal, step_of
from margincast.training.compiled import compile_layers
from margincast.training.master import has_masters
from margincast.training.recording import Recording, claim
from margincast.training.stops import Stop, first_held, stops_of
from margincast.training.trainer import MarginTrainer, PairDataset, arguments, collate
from margincast.training.watch import Watch, watched

# Log-probabilities of two passes over the same model differ by rounding alone; more means another model.
TRAINED = {"all": "all weights", "head": "the unembedding, backbone frozen", "lora": "a LoRA adapter"}
COMPILED = 3  # pairs that compiled layers are tried with
REFERENCE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 2.0, torch.float16: 0.5}


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
        make_ready(trainer, rows[:COMPILED], say)
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


def prepared(loaded: LoadedModel, recipe: Recipe, say: Callable[[str], None] = warnings.warn) -> Any:
    """The model with what is to be trained of it, and nothing else, trainable; `loaded` is changed in place.

    An adapter that came with it goes on training under train lora, and else becomes part of the weights. Either way the
    reference is what the features have it to be: the model without.
    """
    refuse_training_quantised(loaded.model, recipe.train)
    if recipe.train == "lora":
        if has_adapter(loaded.model):
            say(f"the adapter of {loaded.name} trains on as it is: its own rank, scale and modules, and no dropout")
        loaded.model = with_adapter(loaded.model, recipe)
        return loaded.model
    loaded.model = merged_model(loaded.model)
    if recipe.train == "head":
        head = untie(loaded.model)
        loaded.model.requires_grad_(False)
        # A small step of the unembedding moves its entries, and logits, by less than float32 can hold.
        head.to(torch.float64).weight.requires_grad_(True)
    return loaded.model


def make_ready(trainer: MarginTrainer, sample: Sequence[Encoded], say: Callable[[str], None]) -> None:
    """Compile the layers where they are to be. Raises `InputError` where processes were started in a way that this run
    cannot be trained in."""
    if trainer.is_deepspeed_enabled:
        raise InputError(DEEPSPEED)
    if trainer.is_fsdp_enabled:
        refuse_sharded(trainer.recipe, trainer.model)
    if trainer.recipe.torch_compile:
        compile_layers(trainer.model, sample, trainer.packed, say)


def refuse_sharded(recipe: Recipe, model: Any) -> None:
    """Raises `InputError` for what FSDP cannot train: a step of several batches, of which the second one crashed (torch
    2.13, on a CPU), weights of 16 bits, whose copies in float32 it would not shard, and compiled layers."""
    if has_masters(model):
        raise InputError(
            f"weights in {str(model.dtype).removeprefix('torch.')} are trained by copies in float32, which FSDP does "
            "not shard; give dtype float32 and bf16"
        )
    if recipe.torch_compile:
        raise InputError("torch_compile was not tried where FSDP shards the weights; leave it out")
    if recipe.gradient_accumulation_steps > 1:
        raise InputError(
            f"gradient_accumulation_steps {recipe.gradient_accumulation_steps} does not work where FSDP shards the "
            "weights; give 1 and a larger per_device_train_batch_size"
        )


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
