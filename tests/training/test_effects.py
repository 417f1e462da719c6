"""What else a run changes: measured without touching it, resumed, stopped at, foreseen, and the same inside TRL."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from margincast import MarginCallback, Watch, load_eval_data, metric_rows
from margincast.errors import InputError
from margincast.evaldata.features import eval_features_of
from margincast.evaldata.tokens import EncodedEval, encode_eval
from margincast.features import features_of
from margincast.features.positions import Positions, head_of, token_features
from margincast.frozen.forecast import forecast_frozen
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.models.load import LoadedModel
from margincast.passes.tokenize import Encoding, encode
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet, Trajectory
from margincast.runs.effects import effect_results
from margincast.training.run import train_model
from tests.frozen.tokens.test_dynamics import multi_token
from tests.problems import make_pairs
from tests.tiny import CONTEXT, tiny_loaded, tiny_model, tiny_tokenizer
from tests.training.short_run import Trained

BUDGET = 4 * 48 * 4  # four answers at each of four recorded steps


def neutral(folder: Path) -> EncodedEval:
    path = folder / "words.txt"
    path.write_text("The answer to the question is that the weather is good.\n\n" * 9, encoding="utf-8")
    few = [{"prompt": f"number {k}?"} for k in range(5)]
    asked = folder / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in few))
    data = load_eval_data({"words": path, "asked": asked, "others": make_pairs(6, 2, start=50)})
    return encode_eval(data, tiny_tokenizer(), context=CONTEXT)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Encoding, Features]:
    pairs, loaded = multi_token(16), tiny_loaded()
    encoding = encode(pairs, loaded.tokenizer, eos=True)
    cache = tmp_path_factory.mktemp("cache")
    return loaded, encoding, features_of(loaded, encoding, pairs[:11], pairs[11:], cache_dir=cache)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    return Watch(eval_data=neutral(tmp_path_factory.mktemp("eval")), effects_budget=BUDGET)


@pytest.fixture(scope="module")
def whole(trained: Trained, watch: Watch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trajectory, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return trained(folder, watch=watch), folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_measuring_changes_no_bit_of_the_run(whole: tuple[Trajectory, Path], trained: Trained, tmp_path: Path) -> None:
    plain = trained(tmp_path)
    assert torch.equal(plain.heldout.margins, whole[0].heldout.margins)
    assert torch.equal(plain.train.margins, whole[0].train.margins)
    mine, theirs = weights(tmp_path), weights(whole[1])
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert plain.effects is None


def test_what_is_measured_is_what_the_trained_model_says(whole: tuple[Trajectory, Path], watch: Watch) -> None:
    """The last row against the model that the run left, by plain passes over every text and pair."""
    trajectory, folder = whole
    row = metric_rows(trajectory)[-1]
    before, after = tiny_model(), tiny_model()
    after.load_state_dict(weights(folder), strict=False)
    after.tie_weights()
    kl, loss, tokens = 0.0, 0.0, 0
    assert watch.eval_data is not None
    for text in [text for each in watch.eval_data.sets for text in each.texts]:
        with torch.no_grad():
            p, q = (model(torch.tensor([text.ids])).logits[0, :-1].log_softmax(-1) for model in (before, after))
        kl += float((p.exp() * (p - q)).sum())
        loss -= float(q.gather(1, torch.tensor(text.ids)[1:, None]).sum())
        tokens += len(text.targets)
    assert row["effects/kl"] == pytest.approx(kl / tokens, rel=1e-3)
    assert row["effects/kl"] > 1e-3
    assert row["effects/perplexity"] == pytest.approx(torch.tensor(loss / tokens).exp().item(), rel=1e-3)
    pairs = next(each.pairs for each in watch.eval_data.sets if each.pairs is not None)
    margins = []
    for pair in pairs.rows:
        sums = []
        for model in (before, after):
            for side in (pair.chosen, pair.rejected):
                ids = torch.tensor([pair.prompt + side])
                with torch.no_grad():
                    logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
                sums.append(float(logps[len(pair.prompt) - 1 :].sum()))
        margins.append(0.1 * ((sums[2] - sums[0]) - (sums[3] - sums[1])))
    assert row["effects/others/rewards/margins"] == pytest.approx(sum(margins) / 6, abs=1e-5)
    first = metric_rows(trajectory)[0]
    assert [first[f"effects/{name}"] for name in ("kl", "greedy_changed", "answers_changed")] == [0.0, 0.0, 0.0]
    found = effect_results(trajectory)["effects"]
    for name in ("kl", "perplexity_before", "perplexity_after", "repetition", "length_slope", "chosen_logps_change"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
    assert found["kl"]["value"] == pytest.approx(row["effects/kl"])
    assert {*found["sets"]} == {"words", "asked", "others"}


def test_an_interrupted_run_has_the_same_effects(
    whole: tuple[Trajectory, Path], trained: Trained, watch: Watch, tmp_path: Path
) -> None:
    trained(tmp_path, watch=watch, stop_after=3)
    again = metric_rows(trained(tmp_path, watch=watch))
    assert [row for row in again if row["step"] != 3] == metric_rows(whole[0])  # at 3 it paused, and recorded that


def test_a_run_stops_at_a_condition_and_goes_on_without_it(
    whole: tuple[Trajectory, Path], trained: Trained, watch: Watch, tmp_path: Path
) -> None:
    rows = metric_rows(whole[0])
    ceiling = (rows[1]["effects/kl"] + rows[2]["effects/kl"]) / 2
    stopping = replace(watch, stop_if=[f"effects/kl>{ceiling}", "eval_loss > 1e9"])
    stopped = trained(tmp_path, watch=stopping)
    assert stopped.steps == (0, 2, 4)
    assert (tmp_path / "model").is_dir()
    assert trained(tmp_path, watch=stopping).steps == (0, 2, 4)  # as it was, also after an interruption at its end
    assert metric_rows(trained(tmp_path, watch=watch)) == rows
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("effects/kl", "give a metric, > or <, and a number"),
        ("effects/kl>=0.5", "give a metric, > or <, and a number"),
        ("effects/kl>much", "much is not a number"),
        ("effects/kl>nan", "nothing compares with nan"),
        ("effects/kl2>1", "did you mean effects/kl?"),
    ],
)
def test_a_condition_that_is_none_is_refused(
    text: str, reason: str, trained: Trained, watch: Watch, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        trained(tmp_path, watch=replace(watch, stop_if=[text]))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


SETTINGS = {"train": "head", "beta": 0.1, "max_steps": 5, "per_device_train_batch_size": 4, "eval_steps": 2, "seed": 3}


@pytest.mark.parametrize(
    "pairs, changes",
    [
        (make_pairs(14, 2), {"optimizer": "sgd", "learning_rate": 4.0}),
        (make_pairs(14, 2), {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.1}),
        (multi_token(14), {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.1}),
        (multi_token(14), {"optimizer": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "linear"}),
    ],
    ids=["one token", "one token, decay", "many tokens", "many tokens, sgd"],
)
def test_a_forecast_of_the_head_foresees_them(pairs: PairSet, changes: dict[str, float], tmp_path: Path) -> None:
    """Real training of the unembedding by PyTorch in float64, and the exact forecast of it: within 1e-6, small numbers
    within 1e-5 of themselves. A real run's batches carry their reference in float32."""
    data = neutral(tmp_path)
    loaded = LoadedModel("tiny", "tiny64", tiny_model(dtype=torch.float64), tiny_tokenizer())
    train, heldout = pairs[:9], pairs[9:]
    encoding = encode(pairs, loaded.tokenizer, eos=pairs[0].chosen not in (" Yes", " No"))
    recipe = Recipe(**(SETTINGS | changes))  # type: ignore[arg-type]
    cache = tmp_path / "cache"
    eval_features = eval_features_of(loaded, data)
    if encoding.single_token:
        features = features_of(loaded, encoding, train, heldout, cache_dir=cache)
        foreseen: Trajectory = forecast_frozen(features, recipe, eval_features=eval_features)
    else:
        parts = token_features(loaded, encoding, train, heldout, cache_dir=cache)
        positions = Positions(*parts, train, heldout, *head_of(loaded), "tiny")
        foreseen = forecast_positions(positions, recipe, dtype=torch.float64, eval_features=eval_features)
        features = features_of(loaded, encoding, train, heldout, cache_dir=cache)
    real = train_model(
        loaded, encoding, features, recipe, tmp_path / "run", watch=Watch(eval_data=data, effects_budget=0)
    )
    theirs = metric_rows(real)
    names = [name for name in theirs[0] if name.startswith("effects/")]
    assert len(names) >= 13
    for mine, row in zip(metric_rows(foreseen), theirs, strict=True):
        for name in names:
            if name in mine:
                assert mine[name] == pytest.approx(row[name], abs=1e-8, rel=1e-5), (name, row["step"])
                assert abs(mine[name] - row[name]) <= 1e-6 * max(1.0, abs(row[name])), (name, row["step"])
    lacking = {name for name in names if name not in metric_rows(foreseen)[0]}
    # Of single tokens with decay, log-probabilities of the run's own responses are not forecast.
    decays = encoding.single_token and "weight_decay" in changes
    assert lacking == ({"effects/chosen_logps"} if decays else set())
    assert theirs[-1]["effects/kl"] > 5e-5


def test_inside_trl_they_are_those_of_train(tmp_path: Path) -> None:
    """One run by `train_model`, one by TRL's DPOTrainer with the callback: the same numbers under the same names."""
    from tests.training.test_callback import OWN, TRAIN, trl

    heldout, loaded = multi_token(30)[24:], tiny_loaded()
    words = tmp_path / "words.txt"
    words.write_text("What would you say to a friend?\n\n" * 40, encoding="utf-8")
    data = load_eval_data({"others": make_pairs(6, 2, start=50), "words": words})
    both = PairSet(TRAIN.pairs + tuple(replace(pair, id=f"h{pair.id}") for pair in heldout))
    train, heldout = both[: len(TRAIN)], both[len(TRAIN) :]
    encoding = encode(both, loaded.tokenizer, eos=True)
    features = features_of(loaded, encoding, train, heldout, cache_dir=tmp_path / "cache")
    measured = encode_eval(data, loaded.tokenizer, eos=True, context=CONTEXT)
    recipe = Recipe(**OWN, eval_steps=2)  # type: ignore[arg-type]
    ours = train_model(
        loaded, encoding, features, recipe, tmp_path / "ours", watch=Watch(eval_data=measured, effects_budget=600)
    )
    callback = MarginCallback(heldout, tmp_path / "theirs", eval_data=data, effects_budget=600)
    trainer = trl(callback, tmp_path / "trl")
    trainer.train()
    theirs = [json.loads(line) for line in (tmp_path / "theirs" / "metrics.jsonl").read_text().splitlines()]
    for mine, row in zip(metric_rows(ours), theirs, strict=True):
        names = [name for name in mine if name.startswith("effects/")]
        assert len(names) > 12
        for name in names:
            assert row[name] == pytest.approx(mine[name], abs=2e-4, rel=2e-4), (name, row["step"])
    logged = {row["step"]: row for row in trainer.state.log_history if "effects/kl" in row}
    assert logged[4]["effects/kl"] == theirs[-1]["effects/kl"] > 1e-5
    summary = json.loads((tmp_path / "theirs" / "summary.json").read_text())
    assert summary["results"]["effects"]["kl"]["value"] == pytest.approx(theirs[-1]["effects/kl"])
    stopping = MarginCallback(heldout, tmp_path / "stopped", eval_data=data, effects_budget=0, stop_if=["effects/kl>0"])
    stopped = trl(stopping, tmp_path / "trl2")
    stopped.train()
    assert stopped.state.global_step == 2


def test_inside_trl_a_resumed_run_has_the_same_effects(tmp_path: Path) -> None:
    from tests.training.test_callback import HELDOUT, trl

    words = tmp_path / "words.txt"
    words.write_text("The answer to the question is that the weather is good.", encoding="utf-8")

    def callback(folder: str, **more: object) -> MarginCallback:
        return MarginCallback(HELDOUT, tmp_path / folder, eval_data=words, effects_budget=0, **more)  # type: ignore[arg-type]

    saving = {"save_strategy": "steps", "save_steps": 2}
    trl(callback("whole"), tmp_path / "once").train()
    trl(callback("parted", stop_if=["effects/kl>0"]), tmp_path / "parts", **saving).train()
    stopped = json.loads((tmp_path / "parted" / "summary.json").read_text())["results"]["stopped"]
    assert (stopped["step"], stopped["stop_if"]) == (2, "effects/kl>0")
    checkpoint = str(tmp_path / "parts" / "checkpoint-2")
    trl(callback("parted"), tmp_path / "parts", **saving).train(resume_from_checkpoint=checkpoint)
    whole, parted = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parted"))
    assert whole == parted
    assert not (tmp_path / "parted" / "state").exists()
