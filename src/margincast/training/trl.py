"""What does a run of TRL's own DPOTrainer do to every held-out margin? Recorded from inside it, in the same shape."""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from margincast.errors import InputError
from margincast.evaldata import EvalData, load_eval_data
from margincast.evaldata.tokens import encode_eval
from margincast.models.load import LoadedModel
from margincast.passes.evaluate import Evaluator
from margincast.passes.response_pass import packing_problem
from margincast.passes.tokenize import Encoding, encode
from margincast.processes import by_first
from margincast.recipe.losses import LOSS_PARAMETERS, Loss, get_loss
from margincast.recipe.recipe import Recipe, recorded_steps
from margincast.records import PairSet, Trajectory
from margincast.results import Json
from margincast.runs.effects import PREFIX as EFFECTS
from margincast.runs.layout import SUMMARY
from margincast.runs.load import Run
from margincast.runs.metrics import metric_rows
from margincast.runs.save import data_summary, save_trajectory, trajectory_results, write_summary
from margincast.runs.store import key_of
from margincast.training.beside import SHOWN, ForecastLog, forecast_log, go_first
from margincast.training.meter import EffectMeter, meter_of
from margincast.training.recorder import REFERENCE_TOLERANCE
from margincast.training.recording import Recording, belongs, claim
from margincast.training.stops import check_names, first_held, stopped_at, stops_of
from margincast.training.watch import EFFECTS_BUDGET, recorded_names

# Settings of DPOConfig that make a margin, or the text it is of, another thing than here; and where they are harmless.
PLAIN = {
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
    "sync_ref_model": False,
    "truncation_mode": "keep_start",
}


class MarginCallback(TrainerCallback):
    """`DPOTrainer(..., callbacks=[MarginCallback(heldout, "runs/trl")])` leaves a run folder in `runs/trl`.

    It holds what `margincast train` writes there, `config.yaml`, figures and page aside: margins, accuracy and loss of
    `heldout` and `train`, per concept, at step 0, every `record_steps` and at the end. `margincast compare` and
    `margincast report` read it.

    heldout: None takes the held-out pairs of `forecast`;  out: None takes `margincast` in the trainer's `output_dir`
    forecast: a forecast of this run, or its folder: at the steps that both have the trainer's log, and so its trackers
    and `log_history`, show `forecast/rewards/margins`, `forecast/eval_rewards/margins`, `forecast/eval_<concept>_...`
    and accuracies, with `/low` and `/high` where the forecast has intervals, and what the run does to the same pairs:
    `eval_<concept>_rewards/margins`, and `eval_rewards/margins` where the trainer evaluates nothing itself
    train: training pairs to record too, all or a part; they do not choose what the trainer trains on
    record_steps: None takes the forecast's steps; without one the trainer's `eval_steps` where it evaluates by steps,
    else 10 as `margincast forecast`
    eval_data: what else the run is measured on, as `load_eval_data` takes or gives it: `effects/...` of `metrics.jsonl`
    and of the trainer's log;  effects_budget: tokens of greedy answers of the whole run, 0: none
    stop_if: conditions on recorded metrics, like "effects/kl>0.5", at which the trainer stops

    Tokenizer, beta, loss and `max_length` are the trainer's, and pairs are encoded as it does. The reference is the
    model at step 0 of the run, which is asked to log its first step too: there the trainer's own rewards are 0 when
    its reference is the same. An interrupted run that goes on from a checkpoint goes on here too.

    Raises `InputError` for a forecast that cannot be read or is of other held-out pairs; the trainer's `train` raises
    it for pairs that cannot be used, for a forecast of another beta or loss or of no common step, for settings under
    which TRL's loss is no function of the margin, for a folder that holds a finished run, for a run that resumes
    without its step 0 in the folder, and when the model at step 0 is not the trainer's reference; `StatedFailure` when
    training diverges.
    """

    def __init__(
        self,
        heldout: PairSet | None = None,
        out: str | Path | None = None,
        *,
        forecast: Trajectory | Run | str | Path | None = None,
        train: PairSet | None = None,
        record_steps: int | None = None,
        eval_data: EvalData | PairSet | Mapping[str, str | Path | PairSet] | Sequence[str | Path] | str | None = None,
        effects_budget: int = EFFECTS_BUDGET,
        stop_if: Sequence[str] = (),
    ) -> None:
        self.forecast: ForecastLog | None = None if forecast is None else forecast_log(forecast)
        foreseen = PairSet(()) if self.forecast is None else self.forecast.trajectory.heldout.pairs
        self.heldout = foreseen if heldout is None else heldout
        if not len(self.heldout):
            raise InputError("MarginCallback needs held-out pairs, or a forecast that has them, and got none")
        if self.forecast is not None and self.heldout.fingerprint != foreseen.fingerprint:
            raise InputError("the forecast is of other held-out pairs than MarginCallback's; leave heldout out")
        if record_steps is not None and record_steps < 1:
            raise InputError(f"record_steps must be at least 1, got {record_steps}")
        loaded = eval_data is None or isinstance(eval_data, EvalData)
        self.eval_data: Any = eval_data if loaded else load_eval_data(eval_data)  # type: ignore[arg-type]
        self.effects_budget = effects_budget
        self.stops = stops_of(stop_if)
        self.train = PairSet(()) if train is None else train
        self.given_out = out
        self.record_steps = record_steps
        self.last = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.loss = trl_loss(args)
        if hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning:
            raise InputError("MarginCallback cannot record an adapter that puts tokens of its own before the prompt")
        self.every = self._record_every(args, state)
        self.started = time.monotonic()
        self.out = Path(args.output_dir) / "margincast" if self.given_out is None else Path(self.given_out)
        if (self.out / SUMMARY).exists() and not (state.global_step > 0 and (self.out / "state").is_dir()):
            raise InputError(f"{self.out} already holds a finished run; give MarginCallback another folder")
        # TRL cuts at max_length only.
        limit = sys.maxsize if args.max_length is None else args.max_length
        both = PairSet(self.train.pairs + self.heldout.pairs)
        encoding = encode(both, kwargs["processing_class"], eos=True, max_length=limit)
        packed = packing_problem(model, encoding.rows) is None
        meter = self._meter(model, kwargs["processing_class"], encoding, limit, packed, state.max_steps)
        self.recording = Recording(
            Evaluator(encoding.rows, packed, frozen_backbone=False), self.out / "state", self.train, self.heldout,
            meter=meter,
        )  # fmt: skip
        check_names(self.stops, recorded_names(self.heldout, meter))
        tokens = [[row.prompt, row.chosen, row.rejected] for row in encoding.rows]
        measured = [] if meter is None else [meter.data.fingerprint, self.effects_budget]
        identity = key_of([both.fingerprint, tokens, model.config.name_or_path, args.beta, args.seed, *measured])
        main = state.is_world_process_zero
        if state.global_step == 0:
            if main:
                claim(self.recording.folder, identity)
            self.recording.begin(model)
            if main and meter is not None:
                meter.keep(self.recording.folder)
            self._record(model, state)
        elif not (belongs(self.recording.folder, identity) and self.recording.has(0)):
            raise InputError(
                f"training resumes at step {state.global_step} and {self.out} has no record of this run's step 0, so "
                "the reference is not known; resume with the folder and the pairs that the run began with"
            )
        elif main:
            self.recording.forget_after(state.global_step)
            if meter is not None:
                meter.read(self.recording.folder)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            control.should_log = True
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._record(kwargs["model"], state)
            if self.eval_data is not None or (self.forecast is not None and state.global_step in self.forecast.rows):
                control.should_log = True
            if self.stops and by_first(lambda: first_held(self.stops, self._row(args))) is not None:
                control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = {} if logs is None else logs
        if state.global_step == 1 and "rewards/chosen" in logs:
            self._check_reference(args, logs, kwargs["model"])
        # Those of evaluations, and of the whole run at its end, have no loss of a step.
        if "loss" in logs and state.global_step == self.last and state.is_world_process_zero:
            shown = self._beside(args)
            logs.update(shown)
            state.log_history[-1].update(shown)  # the trainer put a copy there before it called

    def _beside(self, args: Any) -> Mapping[str, float]:
        """What the log of the last recorded step is to show: the forecast, and the run's own held-out metrics; and what
        else was measured."""
        foreseen = self.forecast is not None and self.last in self.forecast.rows
        if not foreseen and self.eval_data is None:
            return {}
        row = self._row(args)
        effects = {name: row[name] for name in row if name.startswith(EFFECTS)}
        if self.forecast is None or not foreseen:
            return effects
        names = {name for name in row if name.startswith("eval_") and name.endswith(tuple(SHOWN.values()))}
        if args.eval_strategy != "no":
            names -= {f"eval_{metric}" for metric in SHOWN.values()}  # the trainer's, of the pairs that it evaluates
        return {**{name: row[name] for name in row if name in names}, **self.forecast.rows[self.last], **effects}

    def _row(self, args: Any) -> Mapping[str, Any]:
        """The metrics of the last recorded step."""
        return metric_rows(self.recording.trajectory(args.beta, self.loss, ""))[-1]

    def _meter(
        self, model: Any, tokenizer: Any, encoding: Encoding, limit: int, packed: bool, steps: int
    ) -> EffectMeter | None:
        if self.eval_data is None:
            return None
        for line in self.eval_data.overlaps(self.train):
            warnings.warn(line, UserWarning, stacklevel=2)
        context = LoadedModel("", "", model, tokenizer).context
        heldout = encoding.select(self.heldout).rows
        return meter_of(
            encode_eval(self.eval_data, tokenizer, eos=True, max_length=limit, context=context),
            tokenizer,
            heldout,
            budget=self.effects_budget,
            records=len(recorded_steps(steps, self.every)),
            packed=packed,
            frozen_backbone=False,
        )

    def _record_every(self, args: Any, state: Any) -> int:
        """How many steps lie between two records. Raises `InputError` for a forecast of another run than this."""
        if self.forecast is None:
            if self.eval_data is not None and not go_first(self):
                warnings.warn("no trainer found: trackers will not show effects", UserWarning, stacklevel=2)
            return self.record_steps or (state.eval_steps if args.eval_strategy == "steps" else 10)
        self.forecast.check(args.beta, self.loss)
        every, end = self.record_steps or self.forecast.every, self.forecast.trajectory.steps[-1]
        recorded = {*range(every, state.max_steps + 1, every), state.max_steps}
        if not recorded & self.forecast.rows.keys():
            raise InputError(
                f"the run records every {every} of {state.max_steps} steps and shares none with the forecast, which "
                f"has every {self.forecast.every} of {end}; forecast with the same max_steps and eval_steps"
            )
        if end != state.max_steps:
            warnings.warn(f"the forecast is of {end} steps, this run has {state.max_steps}", UserWarning, stacklevel=2)
        if not go_first(self):
            warnings.warn("no trainer found: trackers will not show the forecast", UserWarning, stacklevel=2)
        return every

    def _check_reference(self, args: Any, logs: Mapping[str, float], model: Any) -> None:
        """After the first step the trainer logs the rewards from before its first update."""
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
        gap = max(abs(logs["rewards/chosen"]), abs(logs["rewards/rejected"])) / args.beta
        if not gap <= REFERENCE_TOLERANCE[dtype]:
            raise InputError(
                "the model at step 0 is not the trainer's reference: their log-probabilities of the first batch "
                f"differ by {gap:.3g} on average; start from the reference, or MarginCallback's margins are others"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A run that stopped early has not recorded its last step; with `load_best_model_at_end` its model is gone.
        if not args.load_best_model_at_end and self.last != state.global_step:
            self._record(kwargs["model"], state)
        if not state.is_world_process_zero:
            return
        model = kwargs["model"]
        what, origin = trained_part(model)
        loss_type = self.loss if self.loss.parameters else self.loss.name
        trajectory = self.recording.trajectory(args.beta, loss_type, f"training of {origin} by TRL's DPOTrainer")
        rows = save_trajectory(self.out, trajectory)
        stopped = stopped_at(self.stops, rows[-1], state.max_steps)
        config = {**_settings(args), **self.loss.parameters, "loss_type": self.loss.name, "beta": args.beta}
        config |= {"train": what, "trainer": "TRL's DPOTrainer", "max_steps": state.max_steps, "eval_steps": self.every}
        if self.forecast is not None and self.forecast.folder is not None:
            config["forecast"] = str(self.forecast.folder)
        write_summary(
            self.out,
            "train",
            config,
            {**trajectory_results(trajectory, rows, time.monotonic() - self.started), **stopped},
            data=data_summary(
                PairSet(self.train.pairs + self.heldout.pairs), self.train, self.heldout, "given to MarginCallback"
            ),
            model={"id": model.config.name_or_path},
            device=str(model.device),
        )
        if not stopped:  # it goes on from here
            shutil.rmtree(self.recording.folder)

    def _record(self, model: Any, state: Any) -> None:
        measured = self.recording.evaluate(model, state.global_step)
        self.last = state.global_step
        if state.is_world_process_zero:
            self.recording.keep(state.global_step, measured)


def trl_loss(args: Any) -> Loss:
    """The loss that a DPOConfig names. Raises `InputError` where TRL's loss is no function of the margin."""
    if not hasattr(args, "beta") or not hasattr(args, "loss_type"):
        raise InputError(f"MarginCallback belongs to TRL's DPOTrainer; it was given {type(args).__name__}")
    for name, plain in PLAIN.items():
        if getattr(args, name, plain) != plain:
            raise InputError(f"MarginCallback records DPO's own margins; it cannot with {name}={getattr(args, name)!r}")
    names = [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type
    if len(names) != 1:
        raise InputError(f"MarginCallback records one loss; the trainer sums {len(names)}: {', '.join(names)}")
    taken: Mapping[str, float] = get_loss(names[0], args.beta, without_reference=True).parameters
    given = {name: getattr(args, name) for name in LOSS_PARAMETERS if name in taken and hasattr(args, name)}
    return get_loss(names[0], args.beta, **given)


def trained_part(model: Any) -> tuple[str, str]:
    """What of `model` is trained: in a word, and in a phrase."""
    if hasattr(model, "peft_config"):
        return "adapter", "an adapter"
    frozen = not all(parameter.requires_grad for parameter in model.parameters())
    return ("part", "some of the weights") if frozen else ("all", "all weights")


def _settings(args: Any) -> Json:
    """The trainer's settings that `margincast train` has too, as JSON can hold them. Those of the loss are not here:
    a DPOConfig has all of them, whichever its loss takes."""
    names = [field.name for field in fields(Recipe) if field.name not in LOSS_PARAMETERS]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {name: value.value if isinstance(value, Enum) else value for name, value in given.items()}
