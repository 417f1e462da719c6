"""Features of response positions: log-probabilities of the model follow from them, and the pull on its own head."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from margincast.frozen.tokens import TokenFeatures, response_rates, token_features
from margincast.models import LoadedModel, untie
from margincast.passes.response_pass import response_pass
from margincast.passes.tokenize import Encoding, encode
from margincast.recipe.losses import get_loss
from margincast.records import PairSet
from tests.problems import make_pairs
from tests.tiny import tiny_model, tiny_tokenizer

BETA = 0.1


def head_rates(loaded: LoadedModel, encoding: Encoding) -> Tensor:
    """(pairs, 2) rates of log pi when the head follows minus the gradient of the DPO loss, through the model itself."""
    model = copy.deepcopy(loaded.model)
    head = untie(model)
    model.requires_grad_(False)
    head.weight.requires_grad_(True)
    result = response_pass(model, encoding.rows)
    margins = BETA * (result.chosen - result.chosen.detach() - result.rejected + result.rejected.detach())
    loss = get_loss("sigmoid").value(margins).mean()
    (gradient,) = torch.autograd.grad(loss, head.weight, retain_graph=True)
    rates = []
    for one in torch.stack([result.chosen, result.rejected], dim=1).flatten():
        (slope,) = torch.autograd.grad(one, head.weight, retain_graph=True)
        rates.append(-(slope.double() * gradient.double()).sum())
    return torch.stack(rates).unflatten(0, (-1, 2))


def our_rates(loaded: LoadedModel, encoding: Encoding, cache_dir: Path) -> tuple[TokenFeatures, Tensor]:
    one = PairSet(encoding.pairs.pairs[:1])
    features, _ = token_features(loaded, encoding, encoding.pairs, one, cache_dir=cache_dir)
    weight = loaded.model.get_output_embeddings().weight.detach()
    return features, response_rates(features, features, weight, get_loss("sigmoid"), BETA)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_log_probabilities_and_rates_are_the_models(family: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    loaded = LoadedModel("tiny", "tiny", model, tokenizer)
    encoding = encode(make_pairs(12), tokenizer, eos=True)
    features, rates = our_rates(loaded, encoding, tmp_path)
    logits = features.hidden @ model.get_output_embeddings().weight.detach().T
    logps = torch.log_softmax(logits, dim=1)[torch.arange(len(features.target)), features.target]
    assert features.reference is not None
    torch.testing.assert_close(features.reference, logps.double(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        exact = response_pass(model, encoding.rows)
    torch.testing.assert_close(features.per_response(logps)[:, 0], exact.chosen, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.per_response(logps)[:, 1], exact.rejected, rtol=1e-4, atol=1e-4)
    expected = head_rates(loaded, encoding)
    assert float((rates - expected).abs().max() / expected.abs().max()) <= 1e-3
