"""Files of `trl dpo --config` as public recipes have them: forecast as they are, and names without use are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from margincast.cli.main import with_options
from margincast.cli.options import InputOptions, PairOptions
from margincast.errors import InputError
from margincast.recipe.recipe import Recipe
from tests.cli.helpers import run

# Full fine-tuning, as recipe repositories write it for their own scripts.
FULL = """
model_name_or_path: someone/chat-7b-sft
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
trust_remote_code: true

dataset_mixer:
  someone/feedback_binarized: 1.0
dataset_splits:
- train_prefs
- test_prefs
preprocessing_num_workers: 12

bf16: true
beta: 0.02
do_eval: true
evaluation_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: False
hub_model_id: chat-7b-dpo
hub_model_revision: v1.0
learning_rate: 5.0e-7
log_level: info
logging_steps: 10
lr_scheduler_type: cosine
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: adamw_torch
output_dir: data/chat-7b-dpo  # one for every run
overwrite_output_dir: true
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
push_to_hub: yes
report_to:
- tensorboard
- wandb
save_strategy: "no"
seed: 7
warmup_ratio: 0.1
"""
# QLoRA.
ADAPTER = """
model_name_or_path: someone/small
torch_dtype: auto
use_peft: yes
load_in_4bit: true
lora_r: 8
lora_alpha: 16
lora_target_modules:
- q_proj
- v_proj
lora_task_type: CAUSAL_LM
dataset_name: someone/preferences
dataset_config: default
eval_strategy: 'no'
eval_steps: 0.2
learning_rate: 5.0e-6
loss_type: sigmoid
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr_rate: 0.1
max_grad_norm: 0.3
max_steps: 12
optim: paged_adamw_32bit
output_dir: out
run_name: small-dpo
report_to: [trackio]
save_steps: 0.5
use_liger_kernel: true
"""
# What TRL's own command takes: a mixture, an environment, options of accelerate launch.
LAUNCHED = """
env:
  CUDA_VISIBLE_DEVICES: 0
num_processes: 4
mixed_precision: bf16
model_name_or_path:
  someone/small
datasets:
  - path: someone/preferences
    split: train
    columns: [chosen, rejected]
test_split_size: 0.05
deepspeed: zero3.json
use_peft: no
lora_r: 64
loss_type: [sigmoid]
loss_weights: [1.0]
max_steps: -1
num_train_epochs: 2
precompute_ref_log_probs: true
padding_free: true
report_to: none
"""
CASES = {
    "full": (
        FULL,
        {
            "beta": 0.02, "learning_rate": 5e-7, "train": "all", "num_train_epochs": 1.0, "warmup_steps": 0.1,
            "lr_scheduler_type": "cosine", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
            "dtype": "bfloat16", "bf16": True, "trust_remote_code": True, "seed": 7, "report_to": "tensorboard",
        },
        "attn_implementation dataset_mixer do_eval evaluation_strategy gradient_checkpointing_kwargs hub_model_id "
        "dataset_splits hub_model_revision log_level logging_steps max_prompt_length output_dir overwrite_output_dir "
        "per_device_eval_batch_size preprocessing_num_workers push_to_hub save_strategy wandb",
        ("hub_model_revision (unknown)", "report_to wandb"),
    ),
    "adapter": (
        ADAPTER,
        {
            "train": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": "q_proj,v_proj", "max_steps": 12,
            "max_grad_norm": 0.3, "beta": 0.1, "seed": 42, "eval_steps": 10, "lr_scheduler_type": "cosine",
            "report_to": "trackio",
        },
        "dataset_config eval_strategy eval_steps load_in_4bit lora_task_type lr_scheduler_kwargs optim output_dir "
        "run_name save_steps use_liger_kernel lr_scheduler_type dtype",
        ("optim='paged_adamw_32bit' (taken as adamw)", "lr_scheduler_type='cosine_with_min_lr' (taken as cosine)"),
    ),
    "launched": (
        LAUNCHED,
        {"train": "all", "num_train_epochs": 2.0, "learning_rate": 1e-6, "lr_scheduler_type": "linear", "lora_r": 16},
        "env num_processes mixed_precision test_split_size deepspeed lora_r loss_weights padding_free "
        "precompute_ref_log_probs",
        ("num_processes (unknown)",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_forecast_and_every_name_without_a_use_is_said_once(
    case: str, model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    text, settings, unused, said = CASES[case]
    file = tmp_path / f"{case}.yaml"
    file.write_text(text)
    words = (data_folder, "--model", model_folder, "--rehearsal", 0, "--out", tmp_path / "out", "--json")
    done = run("forecast", *words, "--config", file)
    assert done.status == 0, done.err
    (line,) = done.err.splitlines()
    start, _, listed = line.partition(" does not use: ")
    assert start == f"margincast: of {file}, forecast"
    names = [part.split("=")[0].split(" (")[0] for part in listed.split(", ")]
    words_in = [word for name in names for word in name.split()]
    assert all(words_in.count(name) == 1 for name in unused.split()), listed
    assert all(part in listed for part in said), listed
    used = {name for name in settings if name not in unused.split()} - {"report_to"}
    assert not used & {name for name in names if " " not in name}
    config = json.loads(done.out)["config"]
    assert {name: config[name] for name in settings} == settings


def test_a_split_of_the_hub_is_asked_for_by_name(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "dpo.yaml"
    file.write_text("model_name_or_path: x\ndataset_name: nobody.here/preferences\ndataset_train_split: train_prefs\n")
    done = run("forecast", "--model", model_folder, "--config", file, "--out", tmp_path / "out")
    assert done.status != 0
    assert "train_prefs" in done.err.splitlines()[-1]


def test_a_name_misspelt_is_refused_even_there(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "dpo.yaml"
    file.write_text("model_name_or_path: x\nlearning_rat: 1e-5\nsave_step: 3\n")
    done = run("forecast", data_folder, "--model", model_folder, "--config", file, "--out", tmp_path / "out")
    assert done.status == 2
    assert "no option 'learning_rat' here (did you mean learning_rate?)" in done.err
    assert "did you mean save_steps?" in done.err


@pytest.mark.parametrize(
    "lines, words, settings, said",
    [
        ("num_train_epochs: 2", ("--max_steps", "3"), {"max_steps": 3, "num_train_epochs": None}, ""),
        ("max_steps: 9", ("--num_train_epochs", "1"), {"max_steps": None, "num_train_epochs": 1.0}, ""),
        ("use_peft: true\nlora_r: 8", ("--train", "all"), {"train": "all", "lora_r": 16}, "forecast --train all does"),
        (
            "use_peft: true\nlora_r: 8\nlora_alpha: 8\nbf16: true\nmax_steps: 2",
            ("--train", "head"),
            {"train": "head", "lora_r": 16, "lora_alpha": 32, "bf16": False, "max_steps": 2},
            "forecast --train head does not use: lora_r, lora_alpha, bf16",
        ),
        (
            "dataset_test_split: evaluation",
            ("--heldout", "b.jsonl"),
            {"heldout": "b.jsonl", "dataset_test_split": None},
            "",
        ),
        ("model_revision: main", (), {"revision": None}, ""),
    ],
)
def test_flags_beat_what_the_file_says_of_their_partners(
    lines: str,
    words: tuple[str, ...],
    settings: dict[str, object],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "dpo.yaml"
    file.write_text(f"model_name_or_path: x\nloss_type: [hinge]\n{lines}\n")
    seen: dict[str, object] = {}

    def forecast(recipe: Recipe, pairs: PairOptions, inputs: InputOptions) -> None:
        seen.update({**vars(recipe), **vars(pairs), **vars(inputs)})

    app = typer.Typer()
    app.command()(with_options(forecast))
    app(["--config", str(file), *words], prog_name="forecast", standalone_mode=False)
    assert said in capsys.readouterr().err
    assert {name: seen[name] for name in settings} == settings
    assert seen["loss_type"] == "hinge"


def test_a_list_of_one_loss_is_that_loss_without_telling_names_too(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("loss_type: [hinge]\n")
    assert Recipe.from_yaml(tmp_path / "a.yaml").loss_type == "hinge"
    (tmp_path / "b.yaml").write_text("loss_type: [hinge, ipo]\n")
    with pytest.raises(InputError, match="loss_type must be a single value"):
        Recipe.from_yaml(tmp_path / "b.yaml")
