"""One recipe: the same settings from Python, YAML, TRL and a run's config; wrong ones are refused together, by name."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from margincast.errors import InputError
from margincast.recipe.fields import options_of
from margincast.recipe.losses import LOSSES
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import STEPS, Recipe, departures
from margincast.recipe.trl import SAME, TRL_LOSSES
from margincast.recipe.yaml_file import read_yaml, settings_in


def test_every_field_says_what_it_is() -> None:
    assert list(options_of(Recipe)) == [each.name for each in fields(Recipe)]
    assert all(option.help for option in options_of(Recipe).values())


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Recipe(beta=0, max_steps=0, train="al", eval_steps=1.5)  # type: ignore[arg-type]
    said = str(caught.value)
    assert "beta must be a positive number, got 0" in said
    assert "max_steps must be at least 1, got 0" in said
    assert "did you mean all?" in said
    assert "eval_steps must be a whole number, got 1.5" in said


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_steps": 3, "num_train_epochs": 1.0}, "not both"),
        ({"lora_r": 8}, "lora_r belongs to train lora"),
        (
            {"optimizer": "adam", "weight_decay": 0.1},
            "weight_decay belongs to adamw, adamw_bnb_8bit, gd, sgd; with adam",
        ),
        ({"optimizer": "flow", "momentum": 0.1}, "momentum belongs to gd, sgd; with flow"),
        ({"optimizer": "sgd", "adam_beta1": 0.5}, "adam_beta1 belongs to adam, adamw, adamw_bnb_8bit; with sgd"),
        ({"optimizer": "sgd", "nesterov": True}, "nesterov needs a momentum"),
        ({"loss_type": "apo_zero"}, "not a function of the margin"),
        ({"label_smoothing": 0.1}, "sigmoid with label smoothing is called cdpo"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"bf16": "yes"}, "bf16 must be true or false"),
        ({"optimizer": SGD(0.5), "learning_rate": 0.1}, "learning_rate is the optimizer's own"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**settings)  # type: ignore[arg-type]


@given(pairs=st.integers(1, 500), batch=st.integers(1, 40), accumulation=st.integers(1, 5), epochs=st.floats(0.05, 4.0))
def test_epochs_are_steps_as_transformers_counts_them(pairs: int, batch: int, accumulation: int, epochs: float) -> None:
    import math

    recipe = Recipe(
        num_train_epochs=epochs, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
    )
    with pytest.raises(InputError, match="for_pairs"):
        _ = recipe.steps
    batches = math.ceil(pairs / batch)
    # Trainer.set_initial_training_values: updates of an epoch, the last of which may be a smaller group.
    updates = max(batches // accumulation + int(batches % accumulation > 0), 1)
    made = recipe.for_pairs(pairs)
    assert made.steps == math.ceil(epochs * updates)
    assert len(list(made.batches(pairs))) == made.steps


def test_a_config_makes_the_recipe_again() -> None:
    recipe = Recipe(train="lora", lora_r=4, loss_type="cdpo", label_smoothing=0.1, num_train_epochs=2.0)
    config = {each.name: getattr(recipe, each.name) for each in fields(recipe)} | {"data": "traits", "out": "x"}
    assert Recipe.from_config(config) == recipe
    assert Recipe.from_config(config, train="head") == replace(recipe, train="head", lora_r=16)


@pytest.mark.parametrize("name", LOSSES.names)
def test_to_trl_and_back(name: str, tmp_path: Path) -> None:
    smoothing = {"cdpo": 0.1, "robust": 0.2, "exo_pair": 0.01}.get(name)
    recipe = Recipe(
        loss_type=name, label_smoothing=smoothing, beta=0.3, learning_rate=2e-6, max_steps=7, lr_scheduler_type="cosine"
    )
    if name not in TRL_LOSSES:
        with pytest.raises(InputError, match="TRL's DPOTrainer has no loss"):
            recipe.to_trl(tmp_path)
        return
    args = recipe.to_trl(tmp_path)
    assert isinstance(args, TrainingArguments)
    for same in SAME:
        assert getattr(args, same) == getattr(recipe, same), same
    back = Recipe.from_trl(args)
    assert back.loss == recipe.loss or (back.loss.name, back.loss.parameters) == (name, recipe.loss.parameters)
    assert (back.steps, back.lr_scheduler_type, back.rule) == (7, "cosine", recipe.rule)


def test_what_trl_has_and_a_recipe_has_not_is_named_once(tmp_path: Path) -> None:
    from peft import LoraConfig
    from trl import DPOConfig

    args = DPOConfig(
        str(tmp_path), bf16=False, lr_scheduler_type="polynomial", f_divergence_type="js_divergence", optim="adafactor"
    )
    with pytest.warns(UserWarning) as said:
        recipe = Recipe.from_trl(args, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_rslora=True))
    mine = [str(each.message) for each in said if "not carried over" in str(each.message)]
    assert len(mine) == 1
    for name in ("polynomial", "f_divergence_type", "adafactor", "use_rslora"):
        assert name in mine[0]
    assert (recipe.beta, recipe.learning_rate, recipe.num_train_epochs, recipe.seed) == (0.1, 1e-6, 3.0, 42)
    assert (recipe.train, recipe.lora_r, recipe.lora_target_modules) == ("lora", 4, "q_proj,v_proj")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Recipe.from_trl(DPOConfig(str(tmp_path), bf16=False))


TRL_FILE = """
model_name_or_path: some/model
dataset_name: some/data
learning_rate: 5.0e-7
beta: 0.2
loss_type: [robust]
label_smoothing: 0.1
num_train_epochs: 1
use_peft: true
lora_r: 8
lora_target_modules: [q_proj, v_proj]
logging_steps: 25
eval_strategy: steps
warmup_ratio: 0.1
"""


def test_a_file_of_trls_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "dpo.yaml"
    path.write_text(TRL_FILE)
    with pytest.warns(UserWarning, match="not carried over") as said:
        recipe = Recipe.from_yaml(path)
    assert "logging_steps" in str(said[0].message)
    assert (recipe.beta, recipe.learning_rate, recipe.loss.name, recipe.train) == (0.2, 5e-7, "robust", "lora")
    assert (recipe.lora_r, recipe.lora_target_modules, recipe.num_train_epochs) == (8, "q_proj,v_proj", 1.0)
    assert (recipe.lr_scheduler_type, recipe.per_device_train_batch_size) == ("linear", 8)
    assert recipe.for_pairs(400).warmup == 5  # a tenth of 50 steps


@pytest.mark.parametrize(
    "text, says",
    [
        ("bata: 0.1\nmax-stepz: 3\n", ("no option 'bata' here (did you mean beta?)", "max_stepz", "max_steps?")),
        ("beta: 0.1\nbeta: 0.2\n", ("beta is given twice",)),
        ("max_steps: 3\nmax-steps: 4\n", ("max_steps is given twice",)),
        ("a: &a [1]\nbeta: *a\n", ("aliases",)),
        ("beta: [0.1]\n", ("beta must be a single value",)),
        ("- beta\n", ("must hold names and values",)),
        ("beta: 2024-13-45\n", ("beta must be",)),
        ("max_steps: 1:30\n", ("max_steps must be",)),
        ("max_steps: true\n", ("max_steps must be",)),
        ("beta: " + "[" * 3000 + "\n", ("is not YAML",)),
        ("x: !!timestamp abc\n", ("is not YAML",)),
    ],
)
def test_files_that_are_no_recipe_are_refused_in_a_line(text: str, says: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Recipe.from_yaml(path)
    assert all(part in str(caught.value) for part in says), caught.value
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_numbers_are_what_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-3\nmax_steps: 017\n")
    assert (Recipe.from_yaml(path).learning_rate, Recipe.from_yaml(path).steps) == (1e-3, 17)


def test_departures_from_trl_are_said_where_they_are_in_use() -> None:
    assert departures(Recipe()).startswith("Defaults of the paper: beta 0.01 (TRL: 0.1), learning_rate 1e-05")
    assert f"max_steps {STEPS} (TRL: 3 epochs)" in departures(Recipe())
    own = Recipe(beta=0.2, learning_rate=1e-6, per_device_train_batch_size=8, lr_scheduler_type="linear", max_steps=9)
    assert departures(own) == ""


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        ("{path: a/b}", "a/b"),
        ("{path: a/b, split: train_prefs, columns: [chosen, rejected]}", "a/b:train_prefs"),
        ("{path: a/b, fraction: 0.5}", "a/b"),  # shares are of the mixture, and this is all of it
        ("{path: a/b, name: math}", None),
        ("{path: json, data_files: x.jsonl}", "x.jsonl"),
        ("{path: json, data_files: 'x-*.jsonl'}", None),
        ("{path: text, data_files: x.txt}", None),
        ("{path: a/b}, {path: c/d, split: test}", "a/b + c/d:test"),
        ("{path: json, data_files: [x.jsonl, y.jsonl]}, {path: c/d}", "x.jsonl + y.jsonl + c/d"),
        ("{path: a/b, fraction: 0.5}, {path: c/d, fraction: 0.5}", None),  # as many rows as the smaller one has
    ],
)
def test_a_mixture_is_its_data_sets_one_after_the_other(entry: str, data: str | None, tmp_path: Path) -> None:
    file = tmp_path / "dpo.yaml"
    file.write_text(f"model_name_or_path: m\ndatasets: [{entry}]\n")
    settings, unused = settings_in(file, read_yaml(file), ["model", "data", "beta"])
    assert settings.get("data") == data
    assert ("datasets" in unused) == (data is None)
