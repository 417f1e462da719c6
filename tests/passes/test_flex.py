"""FlexAttention is given the rule itself, not a dense mask. Does it compute the same?

On a CPU torch 2.13 has FlexAttention's forward pass only. What a GPU adds, the backward pass and the compiled kernel,
cannot be tested there; that torch refuses it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_mask

from margincast.passes.arguments import attention_mask
from margincast.passes.packing import pack
from margincast.passes.response_pass import packing_problem, response_pass
from tests.passes.test_families import BATCH, FAMILIES, WINDOW
from tests.tiny import randomised
from tests.tolerances import TOLERANCE, error

sets = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=9)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """transformers compiles FlexAttention, for which a CPU needs a C++ compiler; the rule is the same without."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@given(sets, st.one_of(st.none(), st.integers(1, 5)))
def test_the_block_mask_is_the_dense_mask(given_sets: list[list[int]], window: int | None) -> None:
    trie = pack(given_sets)
    block = trie.block_mask(window)
    dense = create_mask(block.mask_mod, None, None, len(trie), len(trie), device="cpu")
    assert torch.equal(dense, trie.mask(window=window) == 0.0)


def test_blocks_that_see_nothing_of_each_other_are_skipped() -> None:
    """Four sequences of 128 tokens with nothing in common fill the diagonal of 4 x 4 blocks."""
    trie = pack([[first] * 128 for first in range(4)])
    assert trie.block_mask().sparsity() == 75.0
    assert trie.block_mask().to_dense()[0, 0].tolist() == torch.eye(4, dtype=torch.int).tolist()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@torch.no_grad()
def test_flex_attention_computes_what_the_dense_mask_does(family: str) -> None:
    model = randomised(FAMILIES[family]())
    dense = response_pass(model, BATCH)
    model.set_attn_implementation("flex_attention")
    masks = attention_mask(model, pack([range(WINDOW + 1)]))
    assert all(isinstance(mask, BlockMask) for mask in (masks.values() if isinstance(masks, dict) else [masks]))
    assert packing_problem(model, BATCH) is None
    flex = response_pass(model, BATCH)
    for name in ("chosen", "rejected", "hidden"):
        assert error(getattr(flex, name), getattr(dense, name)) <= TOLERANCE[torch.float32].forward


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the backward pass exists, and the next test runs it")
def test_torch_has_no_backward_pass_of_it_on_a_cpu() -> None:
    model = randomised(FAMILIES["llama"]())
    model.set_attn_implementation("flex_attention")
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        response_pass(model, BATCH)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_gradients_on_a_gpu_are_those_of_the_dense_mask(family: str) -> None:
    config = FAMILIES[family]()
    config.hidden_size, config.head_dim = 64, 16  # the kernel wants heads of at least 16
    model = randomised(config).to("cuda")
    gradients = []
    for implementation in ("sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        result = response_pass(model, BATCH)
        (result.chosen - 0.7 * result.rejected).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).cpu())
    assert error(gradients[1], gradients[0]) <= 1e-3  # its products are in TF32
