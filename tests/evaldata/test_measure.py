"""KL, loss and greedy choice against plain softmaxes; answers against a loop without a cache."""

from __future__ import annotations

import copy

import pytest
import torch

from margincast import load_eval_data
from margincast.evaldata.answers import NEW_TOKENS, NONE, effects_of_answers, greedy_answers
from margincast.evaldata.measure import first_loss, kept_head, of_head, of_model, positions_of, shift, states_of
from margincast.evaldata.tokens import encode_eval
from margincast.frozen.effects import _shift, _some_tokens
from tests.tiny import tiny_model, tiny_tokenizer


def test_a_moved_model_against_its_own_logits() -> None:
    """Every number from the model's own full logits, text by text, without packs and blocks."""
    first = tiny_model(dtype=torch.float64)
    moved = copy.deepcopy(first)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    texts = encode_eval(load_eval_data("builtin"), tiny_tokenizer(), context=96).sets[0].texts[:12]
    positions, head = positions_of(texts), kept_head(first)
    before, now = states_of(first, texts, True), states_of(moved, texts, True)
    found = shift(of_head(head, before), of_model(moved, now), positions.target, 400)
    loss = positions.per_text(first_loss(of_head(head, before), positions.target, 400) - found.gain)
    kl, changed = positions.per_text(found.kl), positions.per_text(found.changed)
    assert float(kl.min()) > 0.01
    for k, text in enumerate(texts):
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            p, q = (model(ids).logits[0, :-1].log_softmax(-1) for model in (first, moved))
        assert float(kl[k]) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-9)
        assert float(loss[k]) == pytest.approx(-float(q.gather(1, ids[0, 1:, None]).sum()), rel=1e-9)
        assert float(changed[k]) == float((p.argmax(1) != q.argmax(1)).sum())
    same = shift(of_head(head, before), of_model(first, before), positions.target, 400)
    assert float(same.kl.abs().max()) == float(same.gain.abs().max()) == float(same.changed.sum()) == 0.0


@pytest.mark.parametrize("size", [1e-5, 0.1, 8.0])
def test_a_change_of_some_tokens_is_one_of_all_that_is_zero_elsewhere(size: float) -> None:
    torch.manual_seed(0)
    logits, tokens = 3 * torch.randn(50, 40, dtype=torch.float64), torch.tensor([3, 17, 39])
    change = size * torch.randn(50, 3, dtype=torch.float64)
    target = torch.randint(40, (50,))
    target[:3] = tokens
    whole = torch.zeros_like(logits).index_copy_(1, tokens, change)
    of_all = _shift(logits, torch.softmax(logits, 1), whole, target)
    of_some = _some_tokens(logits, tokens).shift(change, target)
    torch.testing.assert_close(of_some.kl, of_all.kl, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(of_some.gain, of_all.gain, rtol=1e-9, atol=1e-15)
    assert torch.equal(of_some.changed, of_all.changed)
    assert bool(of_all.changed.any()) == (size > 1.0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_greedy_answers_are_those_of_a_loop_without_a_cache(architecture: str) -> None:
    model, tokenizer = tiny_model(architecture, dtype=torch.float64), tiny_tokenizer()  # no near ties
    prompts = [(5, 80, 90, 7), (9, 11), (40, 41, 42, 43, 44, 45, 46, 47)]
    found = greedy_answers(model, tokenizer, prompts)
    for prompt, answer in zip(prompts, found.tolist(), strict=True):
        ids, end = list(prompt), tokenizer.eos_token_id
        with torch.no_grad():
            while len(ids) < len(prompt) + NEW_TOKENS and end not in ids[len(prompt) :]:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        made = ids[len(prompt) :]
        assert answer == made + [NONE] * (NEW_TOKENS - len(made))


def test_repetition_and_length_of_answers() -> None:
    straight, circle = [*range(10, 20)], [10, 11, 10, 11, 10, 11, 10, 2, NONE, NONE]
    before, after = torch.tensor([straight, straight]), torch.tensor([straight, circle])
    effects = effects_of_answers([before, after], 2)
    assert effects.length.tolist() == [[10, 10], [10, 7]]
    assert effects.repeated.tolist() == [[0, 0], [0, 0.5]]  # 4 of its 4-grams, of which 2 differ
    assert effects.changed.tolist() == [[0, 0], [0, 1]]
