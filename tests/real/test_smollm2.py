"""Does the main job hold on the real model and real data? SmolLM2 and Anthropic Persona."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from margincast.cli.main import main
from margincast.data import load_pairs
from margincast.data.persona import paper_lists
from margincast.features import features_of
from margincast.models import load_model
from margincast.passes.tokenize import encode
from margincast.records import PairSet
from margincast.runs.load import Run, load_run
from tests.training import test_trl_parity
from tests.training.test_trl_parity import assert_same, train_ours, train_trl

pytestmark = pytest.mark.real


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0


def both_runs(shared: Path, cache_dir: Path, folder: Path, optimizer: str, steps: int) -> tuple[Run, Run]:
    """Frozen forecast and real head training on 200 statements of each persona of `persona:k2`, by the same flags."""
    for name in paper_lists()["k2"]:
        rows = (shared / "data" / "persona" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "personas").mkdir(exist_ok=True)
        (folder / "personas" / f"{name}.jsonl").write_text("".join(rows[:200]), encoding="utf-8")
    flags: list[object] = [folder / "personas", "--optimizer", optimizer, "--learning_rate", 1e-3, "--beta", 0.01]
    flags += ["--max_steps", steps, "--per_device_train_batch_size", 32, "--seed", 0, "--eval_steps", 3, "--quiet"]
    flags += ["--cache_dir", cache_dir]
    run("forecast", "--train", "head", *flags, "--out", folder / "forecast")
    run("train", *flags, "--train", "head", "--no_save_model", "--out", folder / "train")
    return load_run(folder / "forecast"), load_run(folder / "train")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_forecast_is_head_training(shared: Path, cache_dir: Path, tmp_path: Path, optimizer: str) -> None:
    forecast, trained = both_runs(shared, cache_dir, tmp_path, optimizer, steps=6)
    assert forecast.trajectory.steps == trained.trajectory.steps == (0, 3, 6)
    for split in ("train", "heldout"):
        ours = getattr(forecast.trajectory, split).margins
        real = getattr(trained.trajectory, split).margins
        assert ours.shape == real.shape
        assert float(real[0].abs().max()) == 0.0
        for step in (1, 2):
            assert float((ours[step] - real[step]).abs().max()) <= 1e-4 * float(real[step].abs().max())
    first = json.loads((tmp_path / "train" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["eval_loss"] == pytest.approx(0.6931471805599453, abs=1e-15)
    assert first["rewards/accuracies"] == first["eval_rewards/accuracies"] == 0.0


def test_unembedding_times_features_is_logits(shared: Path, cache_dir: Path, tmp_path: Path) -> None:
    """The double norm of the authors' scripts fails this test: `hidden_states[-1]` is already normed."""
    loaded = load_model("smollm2", cache_dir=cache_dir)
    pairs = load_pairs("persona:k1", persona_dir=shared / "data" / "persona")
    few = PairSet(pairs.pairs[:6])
    train, heldout = PairSet(few.pairs[:4]), PairSet(few.pairs[4:])
    encoding = encode(few, loaded.tokenizer)
    assert encoding.single_token
    assert not encoding.eos
    features = features_of(loaded, encoding, train, heldout, cache_dir=tmp_path)
    weight = loaded.model.get_output_embeddings().weight
    norm = loaded.model.model.norm
    for index, row in enumerate(encoding.rows[:4]):
        with torch.no_grad():
            own = loaded.model(torch.tensor([row.prompt])).logits[0, -1]
            logits = weight @ features.train.hidden[index]
            twice = weight @ norm(features.train.hidden[index])
        scale = float(own.abs().max())
        assert float((logits - own).abs().max()) <= 1e-5 * scale
        assert float((twice - own).abs().max()) > 1e-2 * scale
        reference = torch.log_softmax(own.double(), dim=-1)[row.chosen[0]]
        assert float(features.train.reference_chosen[index]) == pytest.approx(float(reference), abs=1e-4)


def test_a_step_of_full_fine_tuning_is_trls(
    shared: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after one update. Further steps at the tiny model's rate of 1e-3 amplify float32's rounding: gradient
    norms were 3e-4 apart after three."""
    monkeypatch.setattr(test_trl_parity, "STEPS", 2)
    monkeypatch.setattr(test_trl_parity, "LEARNING_RATE", 1e-4)
    loaded: Any = load_model("smollm2", cache_dir=cache_dir)
    pairs = load_pairs("persona:k1", persona_dir=shared / "data" / "persona")
    few = PairSet(pairs.pairs[:16])
    theirs = train_trl(copy.deepcopy(loaded.model), loaded.tokenizer, few, tmp_path / "trl")
    ours = train_ours(loaded, few, tmp_path)
    assert_same(ours, theirs, relative=1e-4)
