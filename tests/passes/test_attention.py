"""Three kernels attend to tries, and a model of its own attention would. Do they agree, gradients included?

On a CPU "joined" calls plain torch in place of FlashAttention, and FlexAttention runs uncompiled; its backward pass,
which torch keeps from CPU tensors, is the same dense code there, and is let through.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention
from transformers.models.gemma3 import Gemma3TextConfig

from margincast.passes.arguments import attended_throughout
from margincast.passes.attention import choice, joined
from margincast.passes.attention.choice import KERNELS, Attention, disagreement, heads_of
from margincast.passes.attention.kernel import Heads
from margincast.passes.attention.segments import calls, segments
from margincast.passes.packing import Pack, pack
from margincast.passes.plan import plan_of
from margincast.passes.response_pass import packing_problem, response_pass
from tests.passes.test_families import (
    BATCH,
    FAMILIES,
    GROUPED,
    WINDOW,
    assert_forward_and_backward_agree,
    exact_model,
)
from tests.tiny import randomised
from tests.tolerances import TOLERANCE, error

sets = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9)
windows = st.one_of(st.none(), st.integers(1, 6))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def flex_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention without its refusal of CPU tensors that need gradients, torch's and ours."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda query, key, value: None)
    monkeypatch.setattr(type(KERNELS["flex"]), "refusal", lambda self, heads: None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def visible(trie: Pack, window: int | None) -> Tensor:
    """(nodes, nodes) whether a node sees another, by walking up every sequence's path."""
    sees = torch.zeros(len(trie), len(trie), dtype=torch.bool)
    for path in trie.paths:
        for place, node in enumerate(path):
            first = 0 if window is None else max(0, place - window + 1)
            sees[node, path[first : place + 1]] = True
    return sees


@given(sets, windows)
def test_calls_see_every_pair_of_nodes_once_and_no_other(given_sets: list[list[int]], window: int | None) -> None:
    trie = pack(given_sets)
    times = torch.zeros(len(trie), len(trie), dtype=torch.long)
    for call in calls(trie, window):
        nodes = torch.arange(len(trie)) if call.query is None else call.query
        starts = zip(call.query_starts.tolist(), call.key_starts.tolist(), strict=True)
        (first, other), *rest = list(starts)
        for stop, end in rest:
            queries, keys = nodes[first:stop], call.key[other:end]
            for place, node in enumerate(queries):
                last = len(keys) - len(queries) + place + 1 if call.causal else len(keys)
                begin = 0 if call.window is None else max(0, last - call.window)
                times[node, keys[begin:last]] += 1
            assert len(queries) <= call.longest[0]
            assert len(keys) <= call.longest[1]
            first, other = stop, end
    assert torch.equal(times, visible(trie, window).long())


def test_a_prompt_and_its_responses_are_three_segments_on_two_levels() -> None:
    parts = segments(pack([[1, 2, 3, 4, 5], [1, 2, 3, 6]]))
    assert [(part.start, part.stop, part.end, part.parent, part.level) for part in parts] == [
        (0, 3, 6, None, 0),
        (3, 5, 5, 0, 1),
        (5, 6, 6, 0, 1),
    ]


def by_hand(query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scale: float, cap: float | None) -> Tensor:
    groups = len(query) // len(key)
    scores = scale * query @ key.repeat_interleave(groups, 0).transpose(1, 2)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    return scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value.repeat_interleave(groups, 0)


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_attend_as_by_hand(name: str, dtype: torch.dtype, allowed: float) -> None:
    """Grouped heads, with a window and without, capped where the kernel takes that; gradients in all that goes in."""
    kernel = KERNELS[name]
    caps = st.sampled_from([None] if kernel.refusal(Heads(8, 4, 2, dtype, CPU, softcap=True)) else [None, 2.0])

    @settings(max_examples=3 if name == "flex" else 8, deadline=None)  # uncompiled it is slow
    @given(sets, windows, caps, st.integers(0, 9))
    def check(given_sets: list[list[int]], window: int | None, cap: float | None, seed: int) -> None:
        trie, draw = pack(given_sets), torch.Generator().manual_seed(seed)
        drawn = [torch.randn(count, len(trie), 8, generator=draw).to(dtype) for count in (4, 2, 2, 4)]
        heads = Heads(8, 4, 2, dtype, CPU)

        def attended(states: list[Tensor], ours: bool) -> list[Tensor]:
            *taken, towards = states
            query, key, value = (each.clone().requires_grad_() for each in taken)
            if ours:
                out = kernel.attend(query, key, value, kernel.layout(trie, window, heads), 0.4, cap)
            else:
                out = by_hand(query, key, value, visible(trie, window), 0.4, cap)
            return [out, *torch.autograd.grad(out, (query, key, value), towards)]

        exact = attended([each.double() for each in drawn], ours=False)
        for mine, theirs in zip(attended(drawn, ours=True), exact, strict=True):
            # A gradient that cancels has no size of its own to measure against.
            gap = (mine.detach().double() - theirs).abs().max()
            assert float(gap) <= allowed * max(1.0, float(theirs.detach().abs().max()))

    check()


def gemma3() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        **GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, sliding_window_pattern=2
    )


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are taken unchecked: what the check finds is the subject of other tests, and with flex takes seconds."""
    monkeypatch.setattr(choice, "disagreement", lambda kernel, heads: None)


TRIED = ("llama", "mistral", "qwen2, second layer sliding", "gpt2", "gemma2")


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("family", TRIED)
def test_models_attend_by_kernels_as_single_calls_do(family: str, name: str) -> None:
    """Sliding and full layers, grouped heads; the capped scores of Gemma 2 where the kernel takes them."""
    model = exact_model(family)
    attention = plan_of(model).attention = Attention((name,))
    assert_forward_and_backward_agree(model, BATCH, packed=True)
    assert model.config._attn_implementation != choice.NAME
    if (family, name) == ("gemma2", "joined"):
        assert "soft-capped" in attention.refused["joined"]
    else:
        assert attention.refused == {}
        assert attention.used == {name: 1}


@pytest.mark.usefixtures("trusted")
def test_kernels_agree_on_gemma_3() -> None:
    """Its layers slide and do not in turn, with rotations of their own."""
    model = randomised(gemma3())
    own = response_pass(model, BATCH)
    for name in KERNELS:
        plan_of(model).attention = Attention((name,))
        assert packing_problem(model, BATCH) is None
        assert error(response_pass(model, BATCH).chosen, own.chosen) <= TOLERANCE[torch.float32].forward
        assert plan_of(model).attention.used[name] == 2


def gradient_of(model: torch.nn.Module) -> Tensor:
    model.zero_grad()
    result = response_pass(model, BATCH)
    (result.chosen - 0.7 * result.rejected).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.parametrize("throughout", [True, False])
def test_layers_that_are_computed_again_attend_as_before(throughout: bool) -> None:
    """A backward pass beyond the kernel's reach would meet the model's own attention, without its mask."""
    model = randomised(FAMILIES["llama"]())
    plain = gradient_of(model)
    attention = plan_of(model).attention = Attention(("joined",))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    if throughout:
        with attended_throughout(model):
            again = gradient_of(model)
    else:
        again = gradient_of(model)
    assert error(again, plain) <= TOLERANCE[torch.float32].forward
    assert attention.used == ({"joined": 1} if throughout else {})


def test_a_kernel_that_fails_or_is_wrong_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(FAMILIES["llama"]())
    attention = plan_of(model).attention = Attention(("joined", "flex", "dense"))
    monkeypatch.setattr(joined.Plain, "backward", lambda *arguments: tuple(0.9 * each for each in arguments[1]))

    def fails(*arguments: object) -> None:
        raise RuntimeError("no valid triton configs\nand more")

    monkeypatch.setattr(type(KERNELS["flex"]), "attend", fails)
    assert packing_problem(model, BATCH) is None
    assert response_pass(model, BATCH).chosen.requires_grad
    assert attention.refused["joined"].startswith("the gradient in queries differs by")
    assert attention.refused["flex"] == "it fails: no valid triton configs"
    assert attention.used.keys() >= {"dense"}


def test_a_model_that_hands_on_no_trie_attends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(FAMILIES["llama"]())
    attention = plan_of(model).attention = Attention(("joined",))
    forward = model.model.forward

    def forgetful(**given: object) -> object:
        given.pop(choice.TRIE, None)
        return forward(**given)

    monkeypatch.setattr(model.model, "forward", forgetful)
    assert packing_problem(model, BATCH) is None
    assert "does not hand on the trie" in attention.refused["joined"]


@pytest.mark.usefixtures("trusted")
def test_under_autocast_states_and_mask_are_in_its_dtype() -> None:
    model = randomised(FAMILIES["llama"]())
    exact = response_pass(model, BATCH).chosen
    for name in (None, *KERNELS):
        plan_of(model).attention = Attention(() if name is None else (name,))
        with torch.autocast("cpu", torch.bfloat16):
            assert heads_of(model).dtype == torch.bfloat16
            rounded = response_pass(model, BATCH).chosen
        assert 1e-6 < error(rounded, exact) <= 2e-2
        assert plan_of(model).attention.refused == {}


def test_flash_is_called_as_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, shapes and dtypes of its operators, which tensors without storage ask for too."""
    monkeypatch.setattr(joined, "_part", lambda query: joined.Flash)
    meta = torch.device("meta")
    trie = pack([[1, 2, 3], [1, 2, 4, 5]])
    for window in (None, 2):
        query, key, value = (
            torch.empty(count, len(trie), 8, device=meta, dtype=torch.bfloat16, requires_grad=True)
            for count in (4, 2, 2)
        )
        layout = [
            joined.Call(
                None if call.query is None else call.query.to(meta),
                call.key.to(meta),
                call.query_starts.to(meta),
                call.key_starts.to(meta),
                call.longest,
                call.causal,
                call.window,
            )
            for call in calls(trie, window)
        ]
        out = KERNELS["joined"].attend(query, key, value, layout, 0.3, None)
        assert out.shape == query.shape
        gradients = torch.autograd.grad(out, (query, key, value), torch.empty_like(out))
        assert [each.shape for each in gradients] == [query.shape, key.shape, value.shape]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["joined", "flex"])
def test_kernels_agree_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    heads = Heads(64, 8, 2, dtype, torch.device("cuda"))
    assert KERNELS[name].refusal(heads) is not None or disagreement(KERNELS[name], heads) is None
