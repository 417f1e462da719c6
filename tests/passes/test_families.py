"""Which decoder families take packs? Packed equals one sequence at a time, or the reason why not is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.bloom import BloomConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neo import GPTNeoConfig
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.mpt import MptConfig
from transformers.models.opt import OPTConfig
from transformers.models.qwen2 import Qwen2Config

from margincast.passes import arguments
from margincast.passes.arguments import attention_mask
from margincast.passes.packing import pack
from margincast.passes.response_pass import check_logits, packing_problem, response_pass
from margincast.passes.tokenize import Encoded
from tests.oracles import response_logp
from tests.tiny import VOCABULARY, randomised
from tests.tolerances import TOLERANCE, error

WINDOW = 4  # most sequences below are longer
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2_SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 96}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "mistral": lambda: MistralConfig(**GROUPED, head_dim=6, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen2, second layer sliding": lambda: Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "gpt2": lambda: GPT2Config(**GPT2_SIZES),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    # Caps low enough to bite on these weights; the first layer slides, the second does not.
    "gemma2": lambda: Gemma2Config(
        **GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        sliding_window=WINDOW,
    ),
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
        word_embed_proj_dim=24,
    ),
}
SLIDING = ("mistral", "qwen2, second layer sliding", "gemma2")
# Shared openings, nested, single tokens, a repeated pair; up to 15 tokens.
BATCH = (
    Encoded((11, 12, 13, 14), (50,), (51,)),
    Encoded((11, 12, 13, 15, 16, 17, 18, 19), (50, 52, 53, 56, 57, 58, 59), (50, 52, 54, 55)),
    Encoded((11, 12), (13, 14), (60, 61, 62)),
    Encoded((20,), (21, 22), (21,)),
    Encoded((20, 21, 22, 23, 24, 25, 26), (21,), (50, 21)),
    Encoded((11, 12, 13, 14), (50,), (51,)),
)


class ExactNorm(torch.nn.Module):
    """An RMS norm in the dtype of its input: the Llama family's own rounds to float32 whatever the model's dtype is."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps
        self.one = 1.0 if "Gemma" in type(norm).__name__ else 0.0

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps) * (self.one + self.weight)


def exact_model(family: str) -> Any:
    """In float64 throughout, so that two ways of computing one number can be told from two numbers.

    All but Gemma 2: soft-capped attention is "eager", takes its softmax in float32 and makes nan of float64's masks.
    """
    model = randomised(FAMILIES[family](), dtype=torch.float32 if family == "gemma2" else torch.float64)
    norms = [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith("RMSNorm")]
    for name, module in norms:
        model.set_submodule(name, ExactNorm(module))
    return model


def one_at_a_time(model: Any, batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    return (
        torch.stack([response_logp(model, pair.prompt, pair.chosen) for pair in batch]),
        torch.stack([response_logp(model, pair.prompt, pair.rejected) for pair in batch]),
    )


def assert_forward_and_backward_agree(model: Any, batch: Sequence[Encoded], packed: bool) -> None:
    """Log-probabilities, and the gradient in every parameter of a sum in which every response has its own weight."""

    def gradients(chosen: Tensor, rejected: Tensor) -> Tensor:
        model.zero_grad()
        weights = torch.linspace(0.5, 1.5, len(batch), dtype=chosen.dtype)
        (weights @ (chosen - 0.7 * rejected)).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    result, theirs = response_pass(model, batch, packed), one_at_a_time(model, batch)
    tolerance = TOLERANCE[model.dtype].forward
    assert error(result.chosen, theirs[0]) <= tolerance
    assert error(result.rejected, theirs[1]) <= tolerance
    assert error(gradients(result.chosen, result.rejected), gradients(*theirs)) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_every_family_computes_what_single_calls_do(family: str, packed: bool) -> None:
    assert_forward_and_backward_agree(exact_model(family), BATCH, packed)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_the_self_check(family: str) -> None:
    model = randomised(FAMILIES[family]())
    assert packing_problem(model, BATCH) is None
    assert check_logits(model, BATCH) == ("soft-capped at 5" if family == "gemma2" else "linear")


# Three tokens make shared, nested and repeated sequences common; prompts and responses may be single tokens.
ids = st.lists(st.integers(3, 5), min_size=1, max_size=6).map(tuple)
batches = st.lists(st.builds(Encoded, ids, ids, ids), min_size=1, max_size=5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", *SLIDING])
def test_any_batch_is_computed_as_single_calls_are(family: str) -> None:
    model = exact_model(family)

    @settings(max_examples=25, deadline=None)
    @given(batches)
    def check(batch: list[Encoded]) -> None:
        assert_forward_and_backward_agree(model, batch, packed=True)

    check()


@pytest.mark.parametrize("family", SLIDING)
def test_the_window_bites_and_the_self_check_would_notice(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest pair is the last of many short ones: the check must go and find it."""
    model = randomised(FAMILIES[family]())
    short = [Encoded((first, first + 1), (50,), (51,)) for first in range(10, 40)]
    batch = [*short, BATCH[1]]
    assert packing_problem(model, batch) is None
    monkeypatch.setattr(arguments, "attention_mask", lambda model, trie: trie.mask(model.dtype))
    assert packing_problem(model, short) is None
    reason = packing_problem(model, batch)
    assert reason is not None
    assert reason.startswith("packed and padded log-probabilities differ by")


def test_a_window_is_masked_only_where_a_sequence_is_longer() -> None:
    model = randomised(FAMILIES["gemma2"]())
    within, beyond = pack([range(WINDOW)]), pack([range(WINDOW + 1)])
    assert torch.equal(attention_mask(model, within), within.mask())
    masks = attention_mask(model, beyond)
    assert set(masks) == {"sliding_attention", "full_attention"}
    assert torch.equal(masks["full_attention"], beyond.mask())
    assert (masks["sliding_attention"] != masks["full_attention"]).nonzero().tolist() == [[0, 0, WINDOW, 0]]
    assert torch.equal(attention_mask(randomised(FAMILIES["mistral"]()), beyond), masks["sliding_attention"])
    assert torch.equal(attention_mask(randomised(FAMILIES["qwen2"]()), beyond), beyond.mask())


def careless_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Causal, and blind to any mask, as a kernel is that knows only sequences (FlashAttention)."""
    groups = module.num_key_value_groups
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attended.transpose(1, 2).contiguous(), None


def blind_llama() -> Any:
    AttentionInterface.register("careless", careless_attention)
    model = randomised(FAMILIES["llama"]())
    model.set_attn_implementation("careless")
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        # Positions are counted in the padding mask, which a pack has none of.
        (
            lambda: randomised(BloomConfig(vocab_size=VOCABULARY, hidden_size=24, n_layer=2, n_head=4)),
            "the model refuses",
        ),
        # Positions are distances in the row, whatever the position ids say.
        (lambda: randomised(MptConfig(vocab_size=VOCABULARY, d_model=24, n_layers=2, n_heads=4)), "packed and padded"),
        # Its second layer has a window of its own making.
        (
            lambda: randomised(
                GPTNeoConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=24,
                    num_layers=2,
                    num_heads=4,
                    attention_types=[[["global", "local"], 1]],
                    window_size=WINDOW,
                )
            ),
            "packed and padded",
        ),
        (blind_llama, "packed and padded"),
    ],
    ids=["bloom", "mpt", "gpt_neo", "attention without masks"],
)
def test_what_cannot_take_a_pack_is_given_padded_rows_and_the_reason_is_said(make: Any, reason: str) -> None:
    model = make()
    said = packing_problem(model, BATCH)
    assert said is not None
    assert said.startswith(reason)
    with torch.no_grad():
        result, theirs = response_pass(model, BATCH, packed=False), one_at_a_time(model, BATCH)
    assert error(result.chosen, theirs[0]) <= TOLERANCE[torch.float32].forward
    assert error(result.rejected, theirs[1]) <= TOLERANCE[torch.float32].forward
