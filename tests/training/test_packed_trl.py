"""Is `PackedDPOTrainer` TRL's DPOTrainer, at fewer tokens? Both side by side: every logged number, every gradient."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from margincast.passes.budgets import Budgets
from margincast.training import packed_trl
from margincast.training.packed import compact, logit_outputs, token_outputs
from margincast.trl import MarginCallback, PackedDPOTrainer
from tests.conftest import REPOSITORY
from tests.problems import make_pairs
from tests.quiet import QUIET
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tolerances import TOLERANCE, error
from tests.training.test_callback import metrics
from tests.training.test_trl_parity import some_pairs

STEPS, BATCH = 3, 4
# What a trainer is given beside its settings.
GIVEN = ("callbacks", "peft_config", "compute_metrics", "ref_model")
CLOCKS = ("runtime", "per_second")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def rows(count: int = 12, start: int = 0) -> Dataset:
    pairs = some_pairs(start + count)[start:]
    columns = ("prompt", "chosen", "rejected")
    return Dataset.from_list([{name: getattr(pair, name) for name in columns} for pair in pairs])


def build(kind: type[DPOTrainer], folder: Path, model: Any = None, config: type = DPOConfig, **changes: Any) -> Any:
    model = tiny_model() if model is None else model
    more = {name: changes.pop(name) for name in GIVEN if name in changes}
    alone = "peft_config" in more or hasattr(model, "peft_config") or changes.get("precompute_ref_log_probs")
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        **QUIET,
        **changes,
    }
    return kind(
        model=model,
        args=config(output_dir=str(folder), **settings),
        train_dataset=rows(),
        eval_dataset=rows(5, 12),
        processing_class=tiny_tokenizer(),
        **{"ref_model": None if alone else copy.deepcopy(model), **more},
    )


def both(folder: Path, model: Any = tiny_model, **changes: Any) -> Iterator[Any]:
    for kind in (DPOTrainer, PackedDPOTrainer):
        torch.manual_seed(0)
        yield build(kind, folder / kind.__name__, model(), **changes)


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], besides: str = "runtime") -> None:
    """Every number of the two logs, clocks and `besides` aside."""
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in other.keys() - {name for name in other if name.endswith((*CLOCKS, besides))}:
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4), (other.get("step"), name)


def train(trainer: Any, **how: Any) -> list[dict[str, Any]]:
    """The log of a run, in which nothing was left to TRL's pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="PackedDPOTrainer")
        trainer.train(**how)
    log: list[dict[str, Any]] = trainer.state.log_history
    return log


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_strategy": "steps", "eval_steps": 2, "gradient_checkpointing": True},
        {"loss_type": "ipo", "gradient_accumulation_steps": 2},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "max_length": 16},
        {"use_weighting": True, "pad_to_multiple_of": 8},
        {"sync_ref_model": True, "ref_model_sync_steps": 1},
        {"precompute_ref_log_probs": True},
        {"precompute_ref_log_probs": True, "peft_config": LoraConfig(**LORA)},
        {"peft_config": LoraConfig(**LORA), "gradient_checkpointing": True},
    ],
    ids=["evaluated", "accumulated", "sum of losses", "weighted", "synced", "precomputed", "precomputed lora", "lora"],
)
def test_a_run_logs_what_trl_logs(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = (train(trainer) for trainer in both(tmp_path, **changes))
    # Where the reference comes from other batches, margins at step 1 are rounding, and which are above 0 is chance.
    chance = 1 if changes.get("precompute_ref_log_probs") else 0
    assert_same(ours[:chance], theirs[:chance], besides="rewards/accuracies")
    assert_same(ours[chance:], theirs[chance:])
    steps = [row for row in theirs if "grad_norm" in row]
    assert len(steps) == STEPS
    assert abs(steps[-1]["rewards/margins"]) > 1e-5


def test_an_adapter_trained_before_is_its_own_reference(tmp_path: Path) -> None:
    def adapted() -> Any:
        torch.manual_seed(1)
        return get_peft_model(tiny_model(), LoraConfig(**LORA, init_lora_weights=False))

    theirs, ours = (train(trainer) for trainer in both(tmp_path, adapted))
    assert_same(ours, theirs)
    assert ours[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_bfloat16_is_packed_too(tmp_path: Path) -> None:
    """The check of the model is in its own float32; of the losses rounding is left."""
    theirs, ours = (train(trainer) for trainer in both(tmp_path, bf16=True, max_steps=2))
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected", "entropy"):
            assert mine[name] == pytest.approx(other[name], rel=2e-2), name


@dataclass(frozen=True)
class Pass:
    """One batch: the loss, TRL's metrics, and the gradient of every parameter."""

    loss: float
    metrics: dict[str, float]
    gradients: dict[str, Tensor]


def one_pass(trainer: Any, batch: Any, **settings: Any) -> Pass:
    before = {name: getattr(trainer, name) for name in settings}
    for name, value in settings.items():
        setattr(trainer, name, value)
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
    for name, value in before.items():
        setattr(trainer, name, value)
    return Pass(float(loss), logged, gradients)


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def sides(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Plain and packed trainer, whose reference is another model; a batch."""
    folder = tmp_path_factory.mktemp("one")
    reference = tiny_model(request.param, seed=1)
    plain, packed = both(folder, lambda: tiny_model(request.param), ref_model=reference)
    for trainer in (plain, packed):
        trainer.model.train()
    return plain, packed, next(iter(plain.get_train_dataloader()))


LOSSES: list[dict[str, Any]] = [
    *({"loss_types": [name]} for name in ("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "sft")),
    *({"loss_types": [name]} for name in ("apo_zero", "apo_down", "discopop", "aot", "aot_unpaired")),
    *({"loss_types": [name], "label_smoothing": 0.1} for name in ("exo_pair", "robust", "aot")),
    {"ld_alpha": 0.5},
    {"f_divergence_type": "js_divergence"},
    {"loss_types": ["ipo", "sft"], "loss_weights": [0.3, 2.0]},
]


@pytest.mark.parametrize("settings", LOSSES, ids=lambda settings: " ".join(map(str, settings.values())))
def test_loss_metrics_and_every_gradient_of_a_batch(settings: dict[str, Any], sides: tuple[Any, Any, Any]) -> None:
    plain, packed, batch = sides
    settings = {"loss_weights": [1.0] * len(settings.get("loss_types", ["sigmoid"])), **settings}
    theirs, ours = (one_pass(trainer, batch, **settings) for trainer in (plain, packed))
    assert not packed._packing_said
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4, abs=1e-5)
    assert error(flat(ours.gradients), flat(theirs.gradients)) < TOLERANCE[torch.float32].forward


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def test_what_a_batch_has_in_common_is_computed_once(sides: tuple[Any, Any, Any]) -> None:
    """Positions that go through the embedding, in the pass of the policy and that of the reference."""
    plain, packed, batch = sides
    counts = []
    for trainer in (plain, packed):
        seen: list[int] = []
        handles = [
            model.get_input_embeddings().register_forward_hook(lambda *call, seen=seen: seen.append(call[1][0].numel()))
            for model in (trainer.model, trainer.ref_model)
        ]
        trainer.compute_loss(trainer.model, batch)
        for handle in handles:
            handle.remove()
        counts.append(seen)
    assert counts[0] == [batch["input_ids"].numel()] * 2
    alone = {tuple(row[:k].tolist()) for row, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)
             for k in range(1, int(real.sum()))}  # fmt: skip
    assert counts[1] == [len(alone)] * 2
    assert 2 * len(alone) < batch["input_ids"].numel()


def test_many_packs_and_few_logits_at_a_time_give_the_same(sides: tuple[Any, Any, Any]) -> None:
    plain, _, inputs = sides
    model, batch = plain.model, compact(inputs)
    found = []
    for budgets in (Budgets(), Budgets(pack_tokens=30, logit_keep=1, logit_block=1200)):
        model.zero_grad()
        values, logits = token_outputs(model, batch, budgets), logit_outputs(model, batch, budgets).logits
        (values.log_probs.exp().sum() + logits[:, 0].square().mean()).backward()
        found.append((values, flat({name: weight.grad for name, weight in model.named_parameters()}), logits.detach()))
    (whole, gradient, logits), (parts, other, logits_of_parts) = found
    for name in whole:
        assert error(parts[name].float(), whole[name].float()) < TOLERANCE[torch.float32].forward, name
    assert error(other, gradient) < TOLERANCE[torch.float32].forward
    mask = batch.inputs["completion_mask"][:, 1:].bool()
    assert error(logits_of_parts[:, :-1][mask], logits[:, :-1][mask]) < TOLERANCE[torch.float32].forward
    logps = logits[:, :-1].log_softmax(dim=-1).gather(2, batch.inputs["input_ids"][:, 1:, None])[..., 0]
    assert error(whole.log_probs, logps * mask) < TOLERANCE[torch.float32].forward


def test_a_checkpoint_is_trls(tmp_path: Path) -> None:
    """A run goes on from its checkpoint, also with the other trainer."""
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    theirs = train(build(DPOTrainer, tmp_path / "theirs", **saving))
    whole = train(build(PackedDPOTrainer, tmp_path / "whole", **saving))
    checkpoint = str(tmp_path / "whole" / "checkpoint-1")
    for kind in (DPOTrainer, PackedDPOTrainer):
        parted = build(kind, tmp_path / "parted", max_steps=2)
        rest = train(parted, resume_from_checkpoint=checkpoint)
        assert_same(rest[:2], whole[:2], besides="num_tokens")  # which TRL counts from 0 again
    assert_same(whole, theirs)
    assert sorted(path.name for path in (tmp_path / "whole" / "checkpoint-2").iterdir()) == sorted(
        path.name for path in (tmp_path / "theirs" / "checkpoint-2").iterdir()
    )


def test_margins_are_recorded_as_inside_trls_trainer(tmp_path: Path) -> None:
    heldout = make_pairs(5, 2, start=18)
    for kind in (DPOTrainer, PackedDPOTrainer):
        callback = MarginCallback(heldout, tmp_path / kind.__name__, record_steps=1)
        train(build(kind, tmp_path / "trl", callbacks=[callback], learning_rate=1e-2))
    theirs, ours = (metrics(tmp_path / kind.__name__) for kind in (DPOTrainer, PackedDPOTrainer))
    assert list(ours) == list(theirs) == [0, 1, 2, 3]
    for step in theirs:
        assert ours[step]["eval_rewards/margins"] == pytest.approx(theirs[step]["eval_rewards/margins"], abs=1e-5)
    assert abs(theirs[3]["eval_rewards/margins"]) > 1e-3


def said(trainer: Any, work: Any = None) -> list[str]:
    """The warnings of a run that is left to TRL's pass."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train() if work is None else work(trainer)
    return [str(each.message) for each in caught if "PackedDPOTrainer" in str(each.message)]


Novel: Any = make_dataclass("Novel", [("novel", bool, False)], bases=(DPOConfig,))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"padding_free": True}, "padding_free=True"),
        ({"truncation_mode": "keep_end"}, "truncation_mode='keep_end'"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0"),
        ({"config": Novel, "novel": True}, "novel=True"),
        ({"disable_dropout": False, "peft_config": LoraConfig(**LORA, lora_dropout=0.5)}, "dropout (0.5 in "),
        (
            {"peft_config": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")},
            "PROMPT_TUNING (an adapter with tokens of its own)",
        ),
    ],
    ids=lambda value: value.split("=")[0].split(" ")[0] if isinstance(value, str) else "",
)
def test_a_setting_that_cannot_be_packed_is_named_once(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    trainer = build(PackedDPOTrainer, tmp_path, max_steps=2, **changes)
    messages = said(trainer)
    assert len(messages) == 1
    assert messages[0].startswith(f"PackedDPOTrainer leaves to TRL's own, padded pass: {reason}")
    assert len([row for row in trainer.state.log_history if "grad_norm" in row]) == 2


def test_an_unknown_loss_is_trls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_trl, "LOSSES", {"hinge"})
    messages = said(build(PackedDPOTrainer, tmp_path, max_steps=1))
    assert messages == ["PackedDPOTrainer leaves to TRL's own, padded pass: loss_type='sigmoid'"]


def test_a_model_that_cannot_be_packed_is_named_once(tmp_path: Path) -> None:
    """Positions of ALiBi are counted in the padding mask."""
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=2))
    messages = said(build(PackedDPOTrainer, tmp_path, model, max_steps=2))
    assert len(messages) == 1
    assert "padded pass: BloomForCausalLM: " in messages[0]


def test_batches_that_cannot_be_packed_are_trls_and_others_are_packed(sides: tuple[Any, Any, Any]) -> None:
    plain, packed, batch = sides
    packed._packing_said = frozenset()
    holes, empty, own = (copy.deepcopy(batch) for _ in range(3))
    last = [int(real.sum()) - 1 for real in batch["attention_mask"]]
    holes["completion_mask"][0, last[0] - 1] = 0
    empty["completion_mask"][1] = 0
    own["input_ids"][0, 0] += 1
    for odd, reason in (
        (holes, "batches whose completion_mask leaves out a part of a response"),
        (empty, "batches with an empty prompt or an empty response"),
        (own, "batches whose chosen and rejected sequences have prompts of their own"),
    ):
        theirs = one_pass(plain, odd)
        messages = said(packed, lambda trainer, odd=odd: [one_pass(trainer, odd), one_pass(trainer, odd)])
        assert messages == [f"PackedDPOTrainer leaves to TRL's own, padded pass: {reason}"]
        assert one_pass(packed, odd).metrics == theirs.metrics
    images = {**batch, "pixel_values": torch.zeros(1)}
    with pytest.warns(UserWarning, match="padded pass: batches that hold pixel_values"):
        assert one_pass(packed, images).metrics == one_pass(plain, images).metrics
    assert one_pass(packed, batch).metrics == pytest.approx(one_pass(plain, batch).metrics, rel=1e-4, abs=1e-5)
    packed._packing_said = frozenset()


def test_metrics_of_logits_are_computed_from_trls(tmp_path: Path) -> None:
    shapes = []

    def measure(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {"mean": float(prediction.predictions.mean())}

    theirs, ours = (
        build(kind, tmp_path / kind.__name__, compute_metrics=measure) for kind in (DPOTrainer, PackedDPOTrainer)
    )
    expected = theirs.evaluate()
    found: list[dict[str, float]] = []
    assert said(ours, lambda trainer: found.append(trainer.evaluate())) == [
        "PackedDPOTrainer leaves to TRL's own, padded pass: outputs of the model that are asked for "
        "(compute_metrics, predict)"
    ]
    assert shapes[0] == shapes[1]
    assert found[0]["eval_mean"] == expected["eval_mean"]


def test_the_example_is_a_run_of_trl_but_for_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (REPOSITORY / "examples" / "packed-trl" / "dpo.py").read_text()
    removed, added = re.findall(
        r"^    [-+](.*)$", (REPOSITORY / "examples" / "packed-trl" / "README.md").read_text(), re.M
    )
    assert script.count(added) == 1
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows().to_json(tmp_path / "pairs.jsonl")
    settings = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "bf16": False, "use_cpu": True}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    where = [
        str(tmp_path / "model"),
        str(tmp_path / "pairs.jsonl"),
        "--output_dir",
        str(tmp_path),
        "--report_to",
        "none",
    ]
    monkeypatch.setattr("sys.argv", ["dpo.py", *where, *words])
    logs = []
    for text in (script, script.replace(added, removed)):
        space: dict[str, Any] = {}
        exec(compile(text, "dpo.py", "exec"), space)
        logs.append(space["trainer"].state.log_history)
    assert_same(*logs)
    assert type(space["trainer"]) is DPOTrainer


def test_the_module_is_read_without_trl_and_names_what_it_has() -> None:
    import margincast.trl

    assert PackedDPOTrainer.__mro__[2] is DPOTrainer
    assert PackedDPOTrainer.__module__ == "margincast.trl"
    with pytest.raises(AttributeError, match=r"module 'margincast\.trl' has no attribute 'DPOTrainer'"):
        margincast.trl.DPOTrainer  # noqa: B018
