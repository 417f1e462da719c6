"""Packed, padded and one-at-a-time passes agree, forward and backward; features are what the unembedding multiplies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from margincast.passes.budgets import BUDGETS, Budgets
from margincast.passes.hooks import decoder_layers, unembedding_input
from margincast.passes.response_pass import check_logits, hidden_states, logits_of, packing_problem, response_pass
from margincast.passes.tokenize import Encoded
from tests.oracles import response_logp
from tests.tiny import ARCHITECTURES, tiny_model
from tests.tolerances import TOLERANCE, error

FORWARD = TOLERANCE[torch.float32].forward
# Shared openings, a response that continues another, single tokens, a repeated pair.
BATCH = (
    Encoded((11, 12, 13, 14), (50,), (51,)),
    Encoded((11, 12, 13, 15, 16), (50, 52, 53), (50, 52, 54, 55)),
    Encoded((11, 12), (13, 14), (60, 61, 62)),
    Encoded((20,), (21, 22), (21,)),
    Encoded((11, 12, 13, 14), (50,), (51,)),
)


def one_at_a_time(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.stack([response_logp(model, pair.prompt, pair.chosen) for pair in BATCH]),
        torch.stack([response_logp(model, pair.prompt, pair.rejected) for pair in BATCH]),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_outputs_of_layers_are_the_models_own(architecture: str, packed: bool) -> None:
    model = tiny_model(architecture)
    layers = len(decoder_layers(model))
    with torch.no_grad():
        result = response_pass(model, BATCH, packed, range(layers))
        assert result.layers is not None
        for index, pair in enumerate(BATCH):
            own = model(input_ids=torch.tensor([pair.prompt]), output_hidden_states=True).hidden_states
            # The last of them is after the final norm, which is not a layer's.
            for layer in range(layers - 1):
                assert error(result.layers[index, layer], own[layer + 1][0, -1]) <= FORWARD
    assert response_pass(model, BATCH, packed).layers is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_log_probabilities_are_those_of_single_calls(architecture: str, packed: bool) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        result = response_pass(model, BATCH, packed)
        chosen, rejected = one_at_a_time(model)
    assert error(result.chosen, chosen) <= FORWARD
    assert error(result.rejected, rejected) <= FORWARD
    assert float((chosen - rejected).abs().min()) > 0.1  # the two sides are told apart


def computes_in(architecture: str) -> torch.dtype:
    """What a float64 model rounds to on its way: the RMS norms and softmaxes of the Llama family are in float32."""
    return torch.float64 if architecture in ("gpt2", "gpt_neox") else torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_single_calls(architecture: str) -> None:
    """Of a DPO loss, in every parameter of the model; float64, so that only the order of sums differs."""
    model = tiny_model(architecture, dtype=torch.float64)

    def gradients(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        (-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))).mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    theirs = gradients(*one_at_a_time(model))
    for packed in (True, False):
        result = response_pass(model, BATCH, packed)
        assert error(gradients(result.chosen, result.rejected), theirs) <= TOLERANCE[computes_in(architecture)].forward


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_and_padded_hidden_states_are_the_same(architecture: str) -> None:
    model = tiny_model(architecture, dtype=torch.float64)
    with torch.no_grad():
        packed, padded = (response_pass(model, BATCH, way).hidden for way in (True, False))
    assert error(packed, padded) <= TOLERANCE[computes_in(architecture)].forward


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_times_the_unembedding_is_the_models_logits(architecture: str) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        hidden = response_pass(model, BATCH).hidden
        for pair, row in zip(BATCH, hidden, strict=True):
            own = model(input_ids=torch.tensor([pair.prompt])).logits[0, -1]
            assert error(logits_of(model, row[None])[0], own) <= FORWARD


@pytest.mark.parametrize(
    "architecture, norm",
    [
        ("llama", lambda model: model.model.norm),
        ("gpt2", lambda model: model.transformer.ln_f),
        ("gemma2", lambda model: model.model.norm),
    ],
)
def test_the_norm_applied_twice_would_be_found_out(architecture: str, norm: Any) -> None:
    """The trap of taking `hidden_states[-1]` and norming it: the test above has the power to see it."""
    model = tiny_model(architecture)
    with torch.no_grad():
        twice = norm(model)(response_pass(model, BATCH).hidden)
        own = torch.stack([model(input_ids=torch.tensor([pair.prompt])).logits[0, -1] for pair in BATCH])
        assert error(logits_of(model, twice), own) > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_declared_linear_unless_capped(architecture: str) -> None:
    expected = "soft-capped at 5" if architecture == "gemma2" else "linear"
    assert check_logits(tiny_model(architecture), BATCH) == expected


def test_a_cap_really_bites_in_the_model_that_is_tested() -> None:
    model = tiny_model("gemma2")
    with torch.no_grad():
        own = model(input_ids=torch.tensor([BATCH[0].prompt])).logits
        hidden = response_pass(model, BATCH).hidden
        assert float(own.abs().max()) <= 5.0
        assert float(model.get_output_embeddings()(hidden).abs().max()) > 5.0


def test_an_unknown_transform_of_the_logits_is_found_out() -> None:
    model = tiny_model("llama")
    forward = model.forward

    def halved(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        output.logits = output.logits * 0.5
        return output

    model.forward = halved
    with pytest.raises(RuntimeError, match=r"differs from the model's logits by 1 .*LlamaForCausalLM"):
        check_logits(model, BATCH)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_that_take_packs_are_recognised(architecture: str) -> None:
    assert packing_problem(tiny_model(architecture), BATCH) is None


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_part_of_a_pack_is_found_out(ignored: str) -> None:
    model = tiny_model("llama")
    forward = model.forward

    def careless(input_ids: Any, **options: Any) -> Any:
        options.pop(ignored, None)
        return forward(input_ids=input_ids, **options)

    model.forward = careless
    reason = packing_problem(model, BATCH)
    assert reason is not None
    assert reason.startswith("packed and padded log-probabilities differ by")


def test_a_model_that_refuses_a_pack_is_left_padded() -> None:
    model = tiny_model("llama")
    forward = model.forward

    def strict(input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model.forward = strict
    reason = packing_problem(model, BATCH)
    assert reason is not None
    assert reason.startswith("the model refuses a packed batch (")
    assert "\n" not in reason
    with torch.no_grad():
        assert error(response_pass(model, BATCH, packed=False).chosen, one_at_a_time(tiny_model("llama"))[0]) <= FORWARD


def test_the_unembedding_is_given_only_what_it_must_compute() -> None:
    """The hook keeps every position's input and spares positions x vocabulary of logits; afterwards it is gone."""
    model = tiny_model("llama")
    ids = torch.tensor([BATCH[1].prompt])
    with torch.no_grad(), unembedding_input(model) as received:
        assert model(input_ids=ids).logits.shape == (1, 1, model.config.vocab_size)
    assert [tuple(hidden.shape) for hidden in received] == [(1, 5, 24)]
    assert model(input_ids=ids).logits.shape == (1, 5, model.config.vocab_size)


def test_rows_point_at_the_position_before_each_response_token() -> None:
    model = tiny_model("gpt2")
    for packed in (True, False):
        with torch.no_grad():
            hidden, rows = hidden_states(model, BATCH[1:3], packed)
        assert rows.target.tolist() == [50, 52, 53, 50, 52, 54, 55, 13, 14, 60, 61, 62]
        assert rows.response.tolist() == [0] * 3 + [1] * 4 + [2] * 2 + [3] * 3
        assert rows.first.tolist() == [int(rows.row[0]), int(rows.row[7])]
        assert hidden.shape[1] == 24


def loss_and_gradients(model: Any, batch: Sequence[Encoded] = BATCH, budgets: Budgets = BUDGETS) -> torch.Tensor:
    """Of log-probabilities that all have another weight: (1 + parameters,), the loss first."""
    model.zero_grad()
    result = response_pass(model, batch, budgets=budgets)
    weights = torch.linspace(0.5, 1.5, len(batch), dtype=result.chosen.dtype)
    loss = weights @ (result.chosen - 0.7 * result.rejected)
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([loss.detach()[None], *gradients])


def biased(architecture: str) -> Any:
    """A float64 model whose unembedding has a bias and whose logits are scaled; Gemma's are soft-capped too."""
    model = tiny_model(architecture, dtype=torch.float64)
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.linspace(-1.0, 1.0, head.out_features, dtype=torch.float64))
    model.config.logit_scale = 0.7
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("height", [1, 3, 7])
def test_blocks_of_logits_change_nothing(architecture: str, height: int) -> None:
    """Tied or not, with bias, scale and cap; BATCH predicts from 11 positions, so 7 leaves a last block of its own."""
    model = biased(architecture)
    whole = loss_and_gradients(model)
    small = Budgets(logit_keep=0, logit_block=height * model.config.vocab_size)
    assert error(loss_and_gradients(model, budgets=small), whole) <= TOLERANCE[torch.float64].formula
    kept = response_pass(model, BATCH, budgets=small)
    with torch.no_grad():
        assert error(response_pass(model, BATCH, budgets=small).chosen, kept.chosen) <= TOLERANCE[torch.float64].formula


class Widest(TorchDispatchMode):
    """Remembers the most rows that any tensor with one column per token had, the transposed unembedding aside, and how
    often such a tensor came out of a matrix product."""

    def __init__(self, unembedding: torch.Tensor) -> None:
        super().__init__()
        self.columns, self.hidden = unembedding.shape
        self.rows = self.products = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.shape[-1] == self.columns:
                rows = tensor.numel() // self.columns
                self.rows = max(self.rows, 0 if rows == self.hidden else rows)
                self.products += "mm" in str(function)
        return result


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_no_more_logits_than_a_block_exist_at_once(packed: bool) -> None:
    """Forward or backward: not all 8 positions from which the responses of BATCH[1:3] are predicted (12 padded)."""
    model = tiny_model("gpt_neox")

    def made(keep: int) -> Widest:
        small = Budgets(logit_keep=keep, logit_block=4 * model.config.vocab_size)
        with Widest(model.get_output_embeddings().weight) as widest:
            result = response_pass(model, BATCH[1:3], packed, budgets=small)
            (result.chosen - result.rejected).sum().backward()
        return widest

    tokens = 12 * model.config.vocab_size  # of these responses
    kept, again = made(tokens), made(tokens - 1)
    assert kept.rows == again.rows == 4
    blocks = 2 if packed else 3
    own = 1  # of the model's call, whose logits are of one position
    assert (kept.products, again.products) == (own + blocks, own + 2 * blocks)


def test_batches_that_are_cheaper_apart_are_computed_apart() -> None:
    model = tiny_model("gpt2", dtype=torch.float64)
    whole, gradients = response_pass(model, BATCH), loss_and_gradients(model)
    for packed in (True, False):
        parts = response_pass(model, BATCH, packed, budgets=Budgets(pack_tokens=8))
        for name in ("chosen", "rejected", "hidden"):
            assert error(getattr(parts, name), getattr(whole, name)) <= TOLERANCE[torch.float64].forward
    apart = loss_and_gradients(model, budgets=Budgets(pack_tokens=8))
    assert error(apart, gradients) <= TOLERANCE[torch.float64].forward


def test_a_model_wrapped_for_training_over_processes_is_passed_through(tmp_path: Path) -> None:
    model = tiny_model("gemma2")
    alone = loss_and_gradients(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        for find_unused in (False, True):
            wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
            assert error(loss_and_gradients(wrapped), alone) <= FORWARD
            assert packing_problem(wrapped, BATCH) is None
            assert check_logits(wrapped, BATCH) == "soft-capped at 5"
    finally:
        dist.destroy_process_group()


WORKER = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from margincast.passes.budgets import Budgets
from margincast.runs.store import write_tensors
from tests.passes.test_passes import BATCH, loss_and_gradients
from tests.tiny import tiny_model

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))
budgets = Budgets(pack_tokens=(8, 2048)[rank])
model = DistributedDataParallel(tiny_model("llama"))
for _ in range(2):
    result = loss_and_gradients(model, (BATCH, BATCH[1:3])[rank], budgets)
if rank == 0:
    write_tensors(folder / "result.safetensors", {"gradients": result[1:]})
dist.destroy_process_group()
"""


def test_processes_with_unlike_numbers_of_passes_average_their_gradients(tmp_path: Path) -> None:
    """The first process needs several packs for its batch, the second one for its own."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=100)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    model = tiny_model("llama")
    mean = (loss_and_gradients(model, BATCH) + loss_and_gradients(model, BATCH[1:3]))[1:] / 2
    assert error(load_file(tmp_path / "result.safetensors")["gradients"], mean) <= FORWARD
