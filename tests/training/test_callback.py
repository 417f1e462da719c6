"""Does a run of TRL's own trainer, recorded from inside, hold the margins that TRL itself evaluates?"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from trl import DPOConfig, DPOTrainer

from margincast import InputError, MarginCallback, StatedFailure, compare, load_run
from margincast.records import PairSet, SplitTrajectory, Trajectory
from tests.cli.helpers import run
from tests.problems import make_pairs
from tests.quiet import QUIET
from tests.tiny import tiny_model, tiny_tokenizer

STEPS, BATCH, BETA = 4, 4, 0.1
TRAIN, HELDOUT = make_pairs(18, 2), make_pairs(7, 2, start=18)
OWN = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "beta": BETA, "learning_rate": 1e-3, "seed": 11}


def dataset(pairs: PairSet) -> Dataset:
    return Dataset.from_list(
        [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    )


def trl(callback: MarginCallback, folder: Path, model: Any = None, **changes: Any) -> DPOTrainer:
    """TRL's trainer with its own evaluation of `HELDOUT` in one batch, its mean being that of the pairs."""
    model = tiny_model() if model is None else model
    reference = changes.pop("ref_model", None if hasattr(model, "peft_config") else copy.deepcopy(model))
    settings = {
        "lr_scheduler_type": "constant",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": len(HELDOUT),
        "logging_steps": 10,
        **QUIET,
        **OWN,
        **changes,
    }
    return DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(output_dir=str(folder), **settings),
        train_dataset=dataset(TRAIN),
        eval_dataset=dataset(HELDOUT),
        processing_class=tiny_tokenizer(),
        callbacks=[callback],
    )


def metrics(folder: Path) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def assert_trls(trainer: DPOTrainer, folder: Path, steps: set[int]) -> None:
    """The folder's means are those of TRL's log, at every step that TRL evaluated."""
    ours = metrics(folder)
    evaluated = {row["step"]: row for row in trainer.state.log_history if "eval_loss" in row}
    assert steps <= evaluated.keys() & ours.keys()
    for step in steps:
        for name in ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/accuracies"):
            key = f"eval_{name}"
            assert ours[step][key] == pytest.approx(evaluated[step][key], abs=1e-5), (step, key)
    assert max(abs(ours[step]["eval_rewards/margins"]) for step in steps) > 1e-3


@pytest.mark.parametrize(
    "changes", [{}, {"precompute_ref_log_probs": True, "ref_model": None}], ids=["", "precomputed"]
)
def test_margins_are_those_trl_evaluates(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    trainer = trl(MarginCallback(HELDOUT, folder, train=TRAIN), tmp_path / "trl", **changes)
    trainer.train()
    assert_trls(trainer, folder, {2, 4})
    recorded = load_run(folder)
    assert recorded.trajectory.steps == (0, 2, 4)
    assert recorded.trajectory.train.pairs == TRAIN
    assert recorded.trajectory.heldout.pairs == HELDOUT
    assert float(recorded.trajectory.heldout.margins[0].abs().max()) == 0.0
    assert recorded.title == "training, all weights, TRL's DPOTrainer"
    last = metrics(folder)[4]
    parts = [last[f"eval_concept-{k}_rewards/margins"] * n for k, n in ((0, 4), (1, 3))]
    assert sum(parts) / 7 == pytest.approx(last["eval_rewards/margins"], abs=1e-12)
    assert not (folder / "state").exists()


def test_under_the_trainers_autocast_passes_are_packed_too(tmp_path: Path) -> None:
    """The check of the model is in its own float32; under bfloat16 packed and padded are further apart than that."""
    callback = MarginCallback(heldout=HELDOUT, train=TRAIN)
    trl(callback, tmp_path, bf16=True, max_steps=1, eval_strategy="no").train()
    assert callback.recording.evaluator.packed


def test_another_loss_is_trls_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = {"loss_type": "robust", "label_smoothing": 0.1}
    trainer = trl(MarginCallback(HELDOUT, folder), tmp_path / "trl", **changes)
    trainer.train()
    assert_trls(trainer, folder, {2, 4})
    assert load_run(folder).summary["config"]["label_smoothing"] == 0.1


def test_of_a_loss_that_averages_the_margins_are_means_over_tokens(tmp_path: Path) -> None:
    """TRL logs sums of rewards, and the loss of the means."""
    folder = tmp_path / "run"
    trainer = trl(MarginCallback(HELDOUT, folder), tmp_path / "trl", loss_type="ipo")
    trainer.train()
    evaluated = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    ours = metrics(folder)
    assert {step: ours[step]["eval_loss"] for step in (2, 4)} == pytest.approx(evaluated, rel=1e-5)
    assert abs(evaluated[4] - evaluated[2]) > 1e-4 * evaluated[4]


def test_a_run_of_ours_with_the_same_settings_has_the_same_margins(tmp_path: Path) -> None:
    """The whole way: two folders, one from `margincast train`, one from TRL, compared and reported from the CLI."""
    data, model = tmp_path / "pairs.jsonl", tmp_path / "model"
    rows = [{**row, "concept": pair.concept} for row, pair in zip(dataset(TRAIN), TRAIN, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    words = [data, "--concept_column", "concept", "--model", model, "--holdout", 0.3, "--eos", "--eval_steps", 2]
    for name, value in OWN.items():
        words += [f"--{name}", value]
    done = run("train", *words, "--cache_dir", tmp_path / "cache", "--no_save_model", "--out", tmp_path / "ours")
    assert done.status == 0
    ours = load_run(tmp_path / "ours").trajectory

    trainer = trl(MarginCallback(ours.heldout.pairs, tmp_path / "theirs", train=ours.train.pairs), tmp_path / "trl")
    trainer.train_dataset = trl_rows(ours.train.pairs, trainer)
    trainer.train()
    done = run("compare", tmp_path / "ours", tmp_path / "theirs", "--out", tmp_path / "comparison", "--json")
    assert (done.status, done.err) == (0, "")
    agreement = json.loads(done.out)["results"]["heldout"]
    assert agreement["pairs"] == len(ours.heldout.pairs)
    assert agreement["max_abs_difference"] <= 1e-4 * agreement["largest_margin"]
    assert (tmp_path / "comparison" / "report.html").is_file()
    assert run("report", tmp_path / "theirs").status == 0
    assert "TRL&#39;s DPOTrainer" in (tmp_path / "theirs" / "report.html").read_text()


def trl_rows(pairs: PairSet, trainer: DPOTrainer) -> Any:
    return trainer._prepare_dataset(dataset(pairs), trainer.processing_class, trainer.args, "train")


def test_without_training_pairs_the_run_is_compared_and_reported_all_the_same(tmp_path: Path) -> None:
    for name, every in (("a", None), ("b", 1)):
        trl(MarginCallback(HELDOUT, tmp_path / name, record_steps=every), tmp_path / "trl").train()
    assert load_run(tmp_path / "b").trajectory.steps == (0, 1, 2, 3, 4)
    assert metrics(tmp_path / "b")[4]["loss"] is None
    assert run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c").status == 0
    assert run("report", tmp_path / "a").status == 0


def test_a_resumed_run_goes_on_with_its_own_step_0(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    trl(MarginCallback(HELDOUT, whole), tmp_path / "trl").train()

    class Stop(Exception):  # noqa: N818
        pass

    class Killed(MarginCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 3:
                raise Stop

    saving = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(Stop):
        trl(Killed(HELDOUT, parted), tmp_path / "parts", **saving).train()
    checkpoint = str(tmp_path / "parts" / "checkpoint-2")
    with pytest.raises(InputError, match=r"resumes at step 2 and .* has no record of this run's step 0"):
        trl(MarginCallback(HELDOUT, tmp_path / "other"), tmp_path / "parts").train(resume_from_checkpoint=checkpoint)
    with pytest.raises(InputError, match="resumes at step 2"):
        trl(MarginCallback(TRAIN, parted), tmp_path / "parts").train(resume_from_checkpoint=checkpoint)
    trl(MarginCallback(HELDOUT, parted), tmp_path / "parts", **saving).train(resume_from_checkpoint=checkpoint)
    assert metrics(parted) == metrics(whole)


def test_a_model_that_is_not_the_reference_is_refused(tmp_path: Path) -> None:
    trainer = trl(MarginCallback(HELDOUT, tmp_path / "run"), tmp_path / "trl", ref_model=tiny_model(seed=1))
    with pytest.raises(InputError, match="the model at step 0 is not the trainer's reference"):
        trainer.train()
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss_type": ["sigmoid", "sft"]}, "records one loss"),
        ({"loss_type": "apo_zero"}, "not a function of the margin"),
        ({"ld_alpha": 0.5}, "ld_alpha=0.5"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type='js_divergence'"),
        ({"use_weighting": True}, "use_weighting=True"),
        ({"sync_ref_model": True}, "sync_ref_model=True"),
        ({"max_length": 12}, "made.jsonl, line 19: the prompt has"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_recorded_is_refused_before_the_first_step(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    trainer = trl(MarginCallback(HELDOUT, tmp_path / "run"), tmp_path / "trl", **{"max_length": 64, **changes})
    with pytest.raises(InputError, match=says):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not (tmp_path / "run").exists()


def test_arguments_that_make_no_sense_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs held-out pairs"):
        MarginCallback(PairSet(()), tmp_path)
    with pytest.raises(InputError, match="record_steps must be at least 1, got 0"):
        MarginCallback(HELDOUT, tmp_path, record_steps=0)


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trl(MarginCallback(HELDOUT, folder), tmp_path / "trl").train()
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="already holds a finished run"):
        trl(MarginCallback(HELDOUT, folder), tmp_path / "trl").train()
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_divergence_is_a_stated_failure(tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                with torch.no_grad():
                    kwargs["model"].get_output_embeddings().weight.fill_(float("nan"))

    trainer = trl(MarginCallback(HELDOUT, tmp_path / "run"), tmp_path / "trl", eval_strategy="no", max_steps=2)
    trainer.add_callback(Break())
    with pytest.raises(StatedFailure, match="training diverged: log-probabilities at step 2"):
        trainer.train()


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh adapter", "trained before"])
def test_lora_is_recorded_against_trls_reference(fresh: bool, tmp_path: Path) -> None:
    """For TRL the reference is the model below a fresh adapter, and a copy of an adapter trained before."""
    folder = tmp_path / "run"
    modules = ["q_proj", "v_proj"]
    settings = LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=fresh)
    model = get_peft_model(tiny_model(), settings)
    trainer = trl(MarginCallback(HELDOUT, folder, train=TRAIN), tmp_path / "trl", model, learning_rate=0.1)
    trainer.train()
    assert_trls(trainer, folder, {2, 4})
    assert load_run(folder).title == "training, adapter, TRL's DPOTrainer"


def test_virtual_tokens_are_refused(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    trainer = trl(MarginCallback(HELDOUT, tmp_path / "run"), tmp_path / "trl", model)
    with pytest.raises(InputError, match="tokens of its own before the prompt"):
        trainer.train()


def told_tracker(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, float]]:
    """What a tracker of `report_to="tracker"` is told in the logs of training steps, by step."""
    told: dict[int, dict[str, float]] = {}

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                told[state.global_step] = dict(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    return told


def foreseen(steps: tuple[int, ...] = (0, 2, 4), beta: float = BETA) -> Trajectory:
    """A forecast of the pairs here: every margin grows by its pair's own amount a step."""

    def split(pairs: PairSet) -> SplitTrajectory:
        ends = torch.linspace(-0.2, 0.5, len(pairs), dtype=torch.float64)
        return SplitTrajectory(pairs, torch.tensor(steps, dtype=torch.float64)[:, None] * ends)

    return Trajectory(steps, split(TRAIN), split(HELDOUT), beta, origin="forecast")


def test_a_forecast_is_shown_beside_the_run_in_trackers_and_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_tracker(monkeypatch)
    foreseen().save(tmp_path / "forecast")
    folder = tmp_path / "trl" / "margincast"
    trainer = trl(MarginCallback(forecast=tmp_path / "forecast"), tmp_path / "trl", report_to="tracker")
    trainer.train()
    forecast, ours = metrics(tmp_path / "forecast"), metrics(folder)
    assert sorted(ours) == [0, 2, 4]
    for step in (2, 4):
        for name in ("rewards/margins", "rewards/accuracies"):
            for prefix in ("", "eval_", "eval_concept-0_", "eval_concept-1_"):
                assert told[step][f"forecast/{prefix}{name}"] == pytest.approx(forecast[step][f"{prefix}{name}"])
            assert told[step][f"eval_concept-0_{name}"] == ours[step][f"eval_concept-0_{name}"]
            assert f"eval_{name}" not in told[step], "the trainer evaluates: that name is its own"
            assert name in told[step], "TRL's own"
    logged = {row["step"]: row for row in trainer.state.log_history if "loss" in row}
    assert {step for step, row in logged.items() if "forecast/rewards/margins" in row} == {2, 4}
    assert logged[4].items() >= told[4].items()
    agreement = compare(load_run(tmp_path / "forecast"), load_run(folder)).heldout
    shown = told[4]["forecast/eval_rewards/margins"], ours[4]["eval_rewards/margins"]
    assert (agreement.margin_a, agreement.margin_b) == pytest.approx(shown)


@dataclass(frozen=True)
class WithBands(Trajectory):
    interval_tensors: Mapping[str, torch.Tensor] = field(kw_only=True)


def test_intervals_of_a_forecast_in_memory_are_shown_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_tracker(monkeypatch)
    around = torch.tensor([[(0.1 * step, 0.05 * step, 0.2 * step) for step in (0, 2, 4)]] * 3, dtype=torch.float64)
    forecast = WithBands(**vars(foreseen()), interval_tensors={"band_margin": around, "band_accuracy": around})
    callback = MarginCallback(HELDOUT, tmp_path / "run", forecast=forecast)
    trl(callback, tmp_path / "trl", report_to="tracker", eval_strategy="no", logging_steps=3).train()
    assert set(told) == {1, 2, 3, 4}
    assert told[4]["forecast/eval_concept-1_rewards/margins"] == 0.4
    assert told[4]["forecast/eval_rewards/accuracies/low"] == 0.2
    assert told[2]["forecast/eval_concept-0_rewards/margins/high"] == 0.4
    assert told[4]["eval_rewards/margins"] == metrics(tmp_path / "run")[4]["eval_rewards/margins"]
    assert not any(name.startswith(("forecast/", "eval_")) for name in told[3])


def test_a_forecast_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other held-out pairs"):
        MarginCallback(TRAIN, tmp_path / "run", forecast=foreseen())
    with pytest.raises(InputError, match="does not exist"):
        MarginCallback(forecast=tmp_path / "nothing")
    for forecast, says in ((foreseen(beta=0.5), "has beta 0.5, the trainer 0.1"), (foreseen((0, 3, 6)), "shares none")):
        trainer = trl(MarginCallback(forecast=forecast, record_steps=2), tmp_path / "trl")
        with pytest.raises(InputError, match=says):
            trainer.train()
        assert trainer.state.global_step == 0
    with pytest.warns(UserWarning, match="the forecast is of 6 steps, this run has 4"):
        trl(MarginCallback(forecast=foreseen((0, 2, 4, 6))), tmp_path / "trl").train()
