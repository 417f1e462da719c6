"""`docs/trainers.md` is what it says: its commands run, its tables have every key of its files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from margincast import Recipe
from margincast.models.tiny import save_tiny
from tests.cli.helpers import run
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "trainers.md").read_text(encoding="utf-8")
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])


def blocks(trainer: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[trainer], flags=re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page's reader has: a model, and pairs of the shape that TRL's section shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARGINCAST_CACHE_DIR", str(tmp_path / "cache"))
    save_tiny(tmp_path / "my-model")
    row = json.loads(blocks("TRL", "json")[0])
    rows = [{name: f"{text} {k}" for name, text in row.items()} for k in range(20)]
    for name in ("pairs.jsonl", "my_pairs.json"):
        Path(name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    Path("my_pairs.json").rename("my_pairs.jsonl")
    return tmp_path


def command(line: str, *more: object) -> Any:
    """The summary of a `margincast ...` line of the page."""
    first, *words = shlex.split(line)
    assert first == "margincast"
    done = run(*words, *more, *([] if words[0] == "report" else ["--json"]))
    assert done.status == 0, (line, done.err)
    return json.loads(done.out) if words[0] != "report" else None


def test_trl(here: Path) -> None:
    file = blocks("TRL", "yaml")[0]
    Path("dpo.yaml").write_text(file)
    before, after = blocks("TRL", "sh")
    forecast = command(before.strip())["config"]
    settings = yaml.safe_load(file)
    settings.pop("model_name_or_path")
    args = DPOConfig(**settings, bf16=False, use_cpu=True, disable_tqdm=True, save_strategy="no")
    space: dict[str, Any] = {"DPOTrainer": DPOTrainer, "Dataset": Dataset, "args": args}
    exec(compile(blocks("TRL", "python")[0], "docs/trainers.md", "exec"), space)
    compare, report = after.strip().splitlines()
    agreement = command(compare, "--out", here / "comparison")["results"]["heldout"]
    assert agreement["pairs"] == len(space["heldout"]) == 2
    command(report)
    assert (here / "runs" / "trl" / "report.html").is_file()
    shown = [row for row in space["trainer"].state.log_history if "forecast/eval_rewards/margins" in row]
    assert [row["step"] for row in shown] == [4, 8]
    recipe = Recipe.from_trl(args)
    assert {name: forecast[name] for name in ("beta", "learning_rate", "max_steps", "seed")} == {
        name: getattr(recipe, name) for name in ("beta", "learning_rate", "max_steps", "seed")
    }


@pytest.mark.parametrize("trainer", ["LLaMA-Factory", "axolotl"])
def test_a_file_of_another_trainer(trainer: str, here: Path) -> None:
    keys = yaml.safe_load(blocks(trainer, "yaml")[0])
    table = [line for line in SECTIONS[trainer].splitlines() if line.startswith("| ")]
    named = {name for line in table for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    assert not set(keys) - named
    line = blocks(trainer, "sh")[0].strip().replace("my_pairs.json", "my_pairs.jsonl")
    config = command(line)["config"]
    assert (config["train"], config["learning_rate"]) == ("lora", float(keys["learning_rate"]))
    assert config["lora_r"] == keys.get("lora_r", keys.get("lora_rank"))
    assert config["beta"] == keys.get("pref_beta", keys.get("dpo_beta"))
    assert config["max_length"] == keys.get("cutoff_len", keys.get("sequence_len"))
    batch = keys.get("per_device_train_batch_size", keys.get("micro_batch_size"))
    assert (config["per_device_train_batch_size"], config["gradient_accumulation_steps"]) == (batch, 2)
    assert config["num_train_epochs"] == keys.get("num_train_epochs", keys.get("num_epochs"))
    assert (config["lr_scheduler_type"], config["warmup_steps"]) == ("cosine", keys["warmup_ratio"])


def test_unsloth(here: Path) -> None:
    """Its objects are TRL's and peft's: the command says what the recipe made of them says."""
    text = blocks("unsloth", "python")[0]
    compile(text, "docs/trainers.md", "exec")
    space: dict[str, Any] = {"DPOConfig": DPOConfig, "LoraConfig": LoraConfig}
    made = re.search(r"^args = (.*)$", text, flags=re.MULTILINE)
    adapter = re.search(r"get_peft_model\(model, (.*)\)$", text, flags=re.MULTILINE)
    assert made and adapter
    args = eval(made[1].replace("output_dir", "bf16=False, use_cpu=True, output_dir"), space)
    recipe = Recipe.from_trl(args, eval(f"LoraConfig({adapter[1]})", space))
    config = command(blocks("unsloth", "sh")[0].strip())["config"]
    names = (
        "train", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "max_steps", "beta", "learning_rate",
        "lr_scheduler_type", "per_device_train_batch_size", "max_length", "seed", "max_grad_norm", "weight_decay",
    )  # fmt: skip
    assert {name: config[name] for name in names} == {name: getattr(recipe, name) for name in names}
