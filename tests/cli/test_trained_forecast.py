"""`margincast forecast` of training all weights or an adapter: its flags, files and refusals, and going on with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.helpers import CONCEPTS, Outcome, run, write_rows
from tests.tiny import tiny_model

Words = tuple[object, ...]
SETTINGS = (
    "--max_steps", 20, "--per_device_train_batch_size", 8, "--learning_rate", "1e-3", "--eval_steps", 5,
    "--beta", 0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(model_folder: Path, data_folder: Path) -> Words:
    return data_folder, "--model", model_folder, *SETTINGS


def forecast(inputs: Words, *words: object) -> Outcome:
    return run("forecast", *inputs, *words)


def summary(out: Path) -> dict[str, object]:
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def rehearsed(inputs: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rehearsed") / "out"
    done = forecast(inputs, "--sweep", "learning_rate=5e-4,1e-3", "--out", out)
    assert done.status == 0, done.err
    for words in (
        "It is not exact",
        "Held-out accuracy st",
        "Intervals are doubled",
        "will lag",
        "By learning_rate",
        "More pairs",
    ):
        assert words in done.out
    return out


def test_it_says_what_it_expects_and_how_sure_it_is(rehearsed: Path) -> None:
    results = summary(rehearsed)["results"]
    assert results["interval"] == 0.9
    assert set(results["concepts"]) == set(CONCEPTS)
    for concept in results["concepts"].values():
        for name in ("heldout_margin", "heldout_accuracy"):
            one = concept[name]
            assert one["low"] <= one["value"] <= one["high"]
    assert sum(concept["least_accurate"] for concept in results["concepts"].values()) == pytest.approx(1.0)
    assert [row["learning_rate"] for row in results["sweep"]] == [5e-4, 1e-3]
    margins, bounds = load_file(rehearsed / "margins.safetensors"), load_file(rehearsed / "intervals.safetensors")
    assert margins["steps"].tolist() == [0, 5, 10, 15, 20]
    assert bool((margins["heldout"][0] == 0).all())
    assert bool((bounds["heldout_low"] <= bounds["heldout_high"]).all())
    assert margins["heldout"].shape == bounds["heldout_low"].shape
    assert margins["train"].shape[1] > margins["heldout"].shape[1]


def test_its_page_answers_in_words(rehearsed: Path) -> None:
    page = (rehearsed / "report.html").read_text()
    for words in ("It is not exact", "Held-out accuracy st", "the central 90%", "By learning_rate"):
        assert words in page
    done = run("report", rehearsed)
    assert done.status == 0
    assert (rehearsed / "report.html").read_text() == page


def test_the_same_command_does_not_rehearse_again(
    inputs: Words, rehearsed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("margincast.trained.rehearsal.rehearse", lambda *_, **__: pytest.fail("rehearsed again"))
    before = load_file(rehearsed / "margins.safetensors")
    assert forecast(inputs, "--sweep", "learning_rate=5e-4,1e-3", "--out", rehearsed).status == 0
    after = load_file(rehearsed / "margins.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_with_pilot_0_nothing_is_trained(inputs: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("margincast.trained.rehearsal.rehearse", lambda *_, **__: pytest.fail("rehearsed"))
    monkeypatch.setattr("margincast.training.run.train_model", lambda *_, **__: pytest.fail("trained"))
    done = forecast(inputs, "--pilot", 0, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "from frozen features." in done.out


@pytest.mark.parametrize("what", ["all", "lora"])
def test_train_goes_on_from_the_pilot(what: str, inputs: Words, tmp_path: Path, data_folder: Path) -> None:
    """And ends where a run ends that was never stopped, to the bit."""
    out = tmp_path / "out"
    done = forecast(inputs, "--train", what, "--pilot", 0.2, "--rehearsal", 0, "--out", out)
    assert done.status == 0, done.err
    assert "a pilot of 4 steps" in done.out
    assert (out / "pilot" / "state" / "checkpoint-4").is_dir()
    again = forecast(inputs, "--train", what, "--pilot", 0.2, "--rehearsal", 0, "--out", out)
    assert again.status == 0
    assert not (out / "pilot" / "state" / "checkpoint-5").exists()
    on = run("train", data_folder, "--config", out / "pilot" / "config.yaml", "--out", out / "pilot")
    assert on.status == 0, on.err
    whole = tmp_path / "whole"
    assert run("train", *inputs, "--train", what, "--out", whole).status == 0
    ours, theirs = load_file(out / "pilot" / "margins.safetensors"), load_file(whole / "margins.safetensors")
    assert ours["steps"].tolist() == [0, 4, 5, 10, 15, 20]
    assert torch.equal(ours["heldout"][[0, 2, 3, 4, 5]], theirs["heldout"])
    # A finished run is a pilot too, of all its steps: nothing is left to be unsure of.
    told = tmp_path / "told"
    assert forecast(inputs, "--train", what, "--pilot", whole, "--rehearsal", 0, "--out", told).status == 0
    end = load_file(told / "margins.safetensors")["heldout"][-1].double()
    torch.testing.assert_close(end, theirs["heldout"][-1].double(), rtol=1e-5, atol=1e-6)


def test_what_it_does_not_know_is_refused(inputs: Words, tmp_path: Path) -> None:
    for words, reason in (
        (("--backbone", "frozen", "--train", "lora"), "--backbone frozen trains the unembedding alone"),
        (("--backbone", "trained", "--train", "head"), "--backbone trained trains more"),
        (("--optimizer", "sgd"), "adamw and adam, not sgd"),
        (("--pilot", "soon"), "--pilot soon"),
        (("--pilot", 21), "from 1 to 20 steps"),
        (("--pilot", 2.5), "from 1 to 20 steps"),
        (("--pilot", tmp_path), "is not a finished"),
        (("--sweep", "seed=1,2"), "--sweep seed=1,2"),
        (("--sweep", "beta=a"), "numbers with commas"),
        (("--sweep", "beta=0.1,-0.1"), "beta"),
        (("--sweep", "max_steps=0,10"), "max_steps"),
        (("--sweep", "beta=0.1,0.1"), "a value is given twice"),
        (("--sweep", "beta=0.1,0.2", "--pilot", 2), "of other settings than the pilot's"),
    ):
        out = tmp_path / "refused"
        done = forecast(inputs, *words, "--out", out)
        assert done.status == 2, (words, done)
        assert reason in done.err
        assert len(done.err.strip().splitlines()) == 1
        assert not (out / "summary.json").exists()
    frozen = run("forecast", *inputs, "--train", "head", "--pilot", 3, "--out", tmp_path / "frozen")
    assert frozen.status == 2
    assert "--pilot is of forecasts that are not exact" in frozen.err


def test_a_path_that_no_run_behind_the_constants_had_is_said(rehearsed: Path, inputs: Words, tmp_path: Path) -> None:
    # 20 steps at 1e-3, the setting of these runs, are far beyond those runs.
    path = summary(rehearsed)["results"]["path"]
    assert path["length"] == pytest.approx(0.02)
    assert path["beyond"]
    known = ("--pilot", 0, "--learning_rate", path["tested"][1] / 20)
    inside = forecast(inputs, *known, "--sweep", "max_steps=18,40", "--out", tmp_path / "inside")
    assert inside.status == 0, inside.err
    assert "Untested:" not in inside.out
    assert inside.out.index("Verdict: ") < inside.out.index("This is a forecast of")
    judged = summary(tmp_path / "inside")["results"]["verdict"]
    assert judged["decision"] == judged["reasons"][0]["decision"]
    assert judged["sweep"]["setting"] == "max_steps"
    assert judged["sweep"]["says"] in inside.out
    assert "Untested values of max_steps: 40." in inside.out
    assert "Untested: the learning rates of this run add up to 0.02," in (rehearsed / "report.html").read_text()


def test_a_pilot_of_other_pairs_is_refused(inputs: Words, rehearsed: Path, tmp_path: Path) -> None:
    done = forecast(inputs, "--seed", 7, "--pilot", rehearsed, "--rehearsal", 0, "--out", tmp_path / "out")
    assert done.status == 2
    assert "did not record held-out pair" in done.err


def test_many_tokens_are_forecast_from_features_alone_and_from_a_rehearsal(model_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {n} is", "chosen": f" good answer {n}", "rejected": f" bad reply of mine {n}"}
        for n in range(24)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    words = (data, "--model", model_folder, *SETTINGS)
    refused = forecast(words, "--pilot", 0, "--train", "lora", "--out", tmp_path / "refused")
    assert refused.status == 2
    assert "responses of many tokens are forecast from features alone for runs of all weights" in refused.err
    alone = forecast(words, "--pilot", 0, "--out", tmp_path / "alone")
    assert alone.status == 0, alone.err
    assert "from frozen features. It is not exact.\n" in alone.out
    assert "rank correlation" in alone.out
    results = summary(tmp_path / "alone")["results"]
    assert results["order"] > 0 and "chat pairs" in results["constants"] and results["more_pairs"] is None
    assert "rank correlation" in (tmp_path / "alone" / "report.html").read_text()
    done = forecast(words, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "from a rehearsal that saw" in done.out
    assert "Compare --pilot 0" in done.out
    assert "Compare --pilot 0" not in alone.out
    assert (tmp_path / "out" / "report.html").is_file()


def test_constants_come_from_folders_of_train(inputs: Words, model_folder: Path, cache: Path, tmp_path: Path) -> None:
    """As the page says: runs are read, rehearsed, fitted, and the file that is saved makes a forecast."""
    import margincast as mc

    kinds = {"fast": ("--learning_rate", "2e-3"), "slow": ("--seed", 2)}
    for name, words in kinds.items():
        done = run("train", *inputs, *words, "--out", tmp_path / name)
        assert done.status == 0, done.err
    model = mc.load_model(str(model_folder))
    runs = [mc.TrainedRun.from_folder(tmp_path / name, model, data=name, cache_dir=cache) for name in kinds]
    trained = mc.load_run(tmp_path / "fast")
    assert torch.equal(runs[0].trajectory.heldout.margins, trained.trajectory.heldout.margins)
    assert runs[0].recipe == mc.Recipe.from_config(trained.summary["config"])
    assert runs[0].features.heldout.pairs.fingerprint == trained.trajectory.heldout.pairs.fingerprint
    assert all(each.rehearsal is not None and each.features.train.layers is not None for each in runs)
    pair = mc.TrainedRun.from_folder(tmp_path / "fast", (model.model, model.tokenizer), data="fast", cache_dir=cache)
    assert pair.rehearsal is not None and runs[0].rehearsal is not None
    assert torch.equal(pair.rehearsal.heldout, runs[0].rehearsal.heldout)
    constants = mc.fit_constants(runs)
    assert constants.paths["all"] == (pytest.approx(0.02), pytest.approx(0.04))
    constants.save(tmp_path / "own.json")
    known = mc.forecast(runs[0].features, runs[0].recipe, constants=tmp_path / "own.json", rehearsal=runs[0].rehearsal)
    assert isinstance(known, mc.TrainedForecast) and not known.beyond
    known.save(tmp_path / "forecast")
    assert "2 runs of 2 data sets" in (tmp_path / "forecast" / "report.html").read_text()
    with pytest.raises(mc.InputError, match="constants are fitted on runs of train"):
        mc.TrainedRun.from_folder(tmp_path / "forecast", model, cache_dir=cache)
    with pytest.raises(mc.InputError, match="whose weights are not those of another"):
        mc.TrainedRun.from_folder(tmp_path / "fast", replace(model, name="another", hash="0"), cache_dir=cache)
    with pytest.raises(mc.InputError, match="whose weights are not those of LlamaForCausalLM"):
        mc.TrainedRun.from_folder(tmp_path / "fast", (tiny_model(seed=1), model.tokenizer), cache_dir=cache)
