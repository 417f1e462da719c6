"""Do weights of 16 bits train as their copies in float32 do, and does a run of them go on as it was left?"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from margincast.errors import InputError
from margincast.features import features_of
from margincast.models.load import LoadedModel
from margincast.passes.response_pass import response_pass
from margincast.passes.tokenize import encode
from margincast.recipe.recipe import Recipe
from margincast.training.prepare import refuse_sharded
from margincast.training.run import train_model
from margincast.training.step import take_step, torch_optimizer
from tests.passes.test_passes import BATCH
from tests.problems import make_pairs
from tests.tiny import tiny_loaded, tiny_model

RECIPE = Recipe(beta=0.1, learning_rate=1e-5, max_steps=6, weight_decay=0.1, max_grad_norm=0.0)


def stepped(dtype: torch.dtype, plain: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The weights of a model before and after the steps of RECIPE; plain: stepped by torch's AdamW as they are."""
    model = tiny_model("gpt_neox").to(torch.bfloat16).to(dtype)  # the same numbers, in both
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = torch_optimizer(model, RECIPE.rule)
    if plain:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-5, weight_decay=0.1)
    reference = [(torch.zeros(len(BATCH)), torch.zeros(len(BATCH)))]
    for _ in range(RECIPE.steps):
        take_step(model, optimizer, [BATCH], reference, RECIPE, 1e-5, same=False, packed=True)
    return before, [weight.detach() for weight in model.parameters()]


def test_the_weights_are_the_rounded_copies_that_a_loop_of_torchs_own_keeps() -> None:
    """The loop: gradients of the rounded weights, AdamW on the copies, round again."""
    model = tiny_model("gpt_neox").to(torch.bfloat16)
    named = dict(model.named_parameters())
    masters = {name: torch.nn.Parameter(weight.detach().float()) for name, weight in named.items()}
    decays = {name for name, weight in named.items() if weight.ndim > 1}
    groups = [
        {"params": [masters[name] for name in named if (name in decays) is kind], "weight_decay": 0.1 if kind else 0.0}
        for kind in (True, False)
    ]
    adamw = torch.optim.AdamW(groups, 1e-5)
    for _ in range(RECIPE.steps):
        model.zero_grad()
        result = response_pass(model, BATCH)
        RECIPE.loss.value(RECIPE.beta * (result.chosen - result.rejected)).mean().backward()
        for name, weight in named.items():
            masters[name].grad = weight.grad.float()
        adamw.step()
        with torch.no_grad():
            for name, weight in named.items():
                weight.copy_(masters[name])
    _, ours = stepped(torch.bfloat16)
    for mine, other in zip(ours, named.values(), strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=2 * torch.finfo(torch.bfloat16).eps, atol=0.0)
    same = sum(int((mine == other).sum()) for mine, other in zip(ours, named.values(), strict=True))
    assert same > 0.999 * sum(mine.numel() for mine in ours)  # gradients of packs add up in another order


def test_steps_below_the_rounding_add_up_as_in_float32() -> None:
    """What 16 bits alone lose: hardly any weight moves at all."""
    model = tiny_model("gpt_neox").to(torch.bfloat16)
    optimizer = torch_optimizer(model, RECIPE.rule)
    reference = [(torch.zeros(len(BATCH)), torch.zeros(len(BATCH)))]
    before = [weight.detach().float().clone() for weight in model.parameters()]
    for _ in range(RECIPE.steps):
        take_step(model, optimizer, [BATCH], reference, RECIPE, 1e-5, same=False, packed=True)
    kept = {id(weight): master for weight, master in optimizer.copies}  # type: ignore[attr-defined]
    ours = torch.cat(
        [
            (kept[id(weight)].detach() - start).flatten()
            for weight, start in zip(model.parameters(), before, strict=True)
        ]
    )
    exact = torch.cat([(after - start).flatten() for start, after in zip(*stepped(torch.float32), strict=True)])
    lossy = torch.cat([(a != b).flatten() for a, b in zip(*stepped(torch.bfloat16, plain=True), strict=True)])
    assert float(torch.corrcoef(torch.stack([ours, exact]))[0, 1]) > 0.95
    assert float(ours.norm() / exact.norm()) == pytest.approx(1.0, abs=0.05)
    assert float((exact != 0).double().mean()) > 0.9
    assert float(lossy.double().mean()) < 0.3


def test_a_stopped_run_of_16_bits_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit: its checkpoint has the copies, which are not to be had from the weights."""
    pairs = make_pairs(10)
    loaded = tiny_loaded()
    loaded = LoadedModel(loaded.name, loaded.hash, loaded.model.to(torch.bfloat16), loaded.tokenizer)
    encoding = encode(pairs, loaded.tokenizer, eos=False)
    features = features_of(loaded, encoding, pairs[:8], pairs[8:], cache_dir=tmp_path / "cache")
    recipe = replace(RECIPE, learning_rate=1e-4, max_steps=4, per_device_train_batch_size=4, eval_steps=2)

    def train(folder: str, **options: int) -> None:
        fresh = replace(loaded, model=copy.deepcopy(loaded.model))
        train_model(fresh, encoding, features, recipe, tmp_path / folder, **options)  # type: ignore[arg-type]

    train("whole")
    train("stopped", stop_after=2)
    train("stopped")
    whole, stopped = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(weight.dtype == torch.bfloat16 for weight in whole.values())
    assert all(torch.equal(stopped[name], weight) for name, weight in whole.items())


def test_where_fsdp_shards_weights_16_bits_are_refused() -> None:
    refuse_sharded(RECIPE, tiny_model())
    with pytest.raises(InputError, match=r"weights in bfloat16 .* give dtype float32 and bf16"):
        refuse_sharded(RECIPE, tiny_model().to(torch.bfloat16))
