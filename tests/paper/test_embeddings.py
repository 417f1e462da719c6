"""Figures 1 and 3 against plain loops over statements."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from margincast.errors import InputError
from margincast.features import extract_features
from margincast.paper.embeddings import as_statements, condition_rows, figure_cosines, normed_again
from margincast.records import Pair, PairSet
from margincast.structure import inspect_features
from margincast.theory.measured import measured_conditions
from tests.tiny import tiny_loaded

LOADED = tiny_loaded()


def pairs(concepts: int = 3, count: int = 6) -> PairSet:
    made = []
    for concept in range(concepts):
        for number in range(count):
            chosen, rejected = (" Yes", " No") if number % 2 else (" No", " Yes")
            text = f"the {['weather', 'answer', 'friend'][concept]} is good {number}"
            prompt = f'Is the statement "{text}" something you would say?\n'
            made.append(
                Pair(f"{concept}:{number}", str(concept), prompt, chosen, rejected, "made", number + 1, statement=text)
            )
    return PairSet(tuple(made))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory):
    return extract_features(LOADED, pairs(), PairSet(()), cache_dir=tmp_path_factory.mktemp("cache"))


def test_a_statement_is_embedded_as_its_last_token_alone(tmp_path) -> None:
    """What the authors' scripts read: the statement, nothing else, hidden state of its last token."""
    statements = as_statements(pairs())
    hidden = extract_features(LOADED, statements, PairSet(()), cache_dir=tmp_path).train.hidden
    with torch.no_grad():
        for row, pair in zip(hidden, pairs(), strict=True):
            ids = torch.tensor([LOADED.tokenizer(pair.statement)["input_ids"]])
            last = LOADED.model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            torch.testing.assert_close(row, last, atol=1e-4, rtol=1e-4)


def test_a_pair_without_a_statement_is_refused() -> None:
    bare = PairSet((replace(pairs()[0], statement=None),))
    with pytest.raises(InputError, match="made, line 1: no statement"):
        as_statements(bare)


def test_cosines_are_the_averages_of_a_plain_loop(features) -> None:
    for one in figure_cosines("fig1", "question", features):
        kept = [(p, h) for p, h in zip(pairs(), features.train.hidden, strict=True)
                if one.side == "both" or p.chosen == " Yes"]  # fmt: skip
        assert one.statements == len(kept)
        mean = torch.stack([h.double() for _, h in kept]).mean(dim=0)
        for matrix, away in ((one.raw, 0.0), (one.centred, mean)):
            for i, a in enumerate(one.concepts):
                for j, b in enumerate(one.concepts):
                    values = [
                        float(torch.nn.functional.cosine_similarity(h.double() - away, k.double() - away, dim=0))
                        for p, h in kept for q, k in kept
                        if (p.concept, q.concept) == (a, b) and p.id != q.id
                    ]  # fmt: skip
                    assert float(matrix[i, j]) == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_the_norm_applied_twice_is_the_formula_of_rms_norm_on_the_features(features) -> None:
    norm = LOADED.model.model.norm
    once = features.train.hidden
    size = (once.square().mean(dim=1, keepdim=True) + norm.variance_epsilon).sqrt()
    torch.testing.assert_close(normed_again(features, LOADED.model).train.hidden, norm.weight.detach() * once / size)


def test_conditions_come_with_intervals_around_what_resampling_gives(features) -> None:
    rows = condition_rows(features, "made")
    plain = measured_conditions(inspect_features(features))
    assert [(row["name"], row["left"], row["holds"]) for row in rows] == [(c.name, c.left, c.holds) for c in plain]
    assert all(row["low"] <= row["high"] for row in rows)
    constant = [row for row in rows if row["name"] == "Q >= 40"]
    assert [(row["low"], row["high"]) for row in constant] == [(3.0, 3.0)]
