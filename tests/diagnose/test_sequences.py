"""Suspects and attributions of responses of many tokens: what is planted is found, and sums are sums."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from margincast.diagnose import diagnose_run, find_issues, plan_changes
from margincast.diagnose.effects import cleaning_effect
from margincast.diagnose.sequences import SequenceSettings, extreme_features, sequence_points
from margincast.features.positions import Positions, TokenFeatures
from margincast.frozen.attribution.edits import drop, edited
from margincast.frozen.tokens.forecast import forecast_positions
from margincast.recipe.optimizers.gd import GradientDescent
from margincast.records import FeatureSet, Pair, PairSet
from tests.diagnose.helpers import two_concepts
from tests.recipes import head_recipe

PAIRS, HELDOUT, WIDTH, VOCABULARY = 120, 12, 8, 11


def chat(index: int, prompt: str, chosen: str, rejected: str) -> Pair:
    """A pair of several turns with a system message; two concepts in turn."""
    turns = (("system", "Be kind."), ("user", "Hello"), ("assistant", "Hello!"), ("user", prompt))
    messages = tuple({"role": role, "content": content} for role, content in turns)
    sides = (({"role": "assistant", "content": text},) for text in (chosen, rejected))
    return Pair(f"p{index}", f"concept-{index % 2}", messages, *sides, source="chat.jsonl", line=index + 1)


def drawn(count: int, generator: torch.Generator, noise: float = 0.5) -> TokenFeatures:
    """Responses of 2 to 7 tokens; every token of a chosen one leans one way, of a rejected one the other way."""
    lengths = torch.randint(2, 8, (2 * count,), generator=generator)
    response = torch.repeat_interleave(torch.arange(2 * count), lengths)
    hidden = noise * torch.randn(len(response), WIDTH, generator=generator, dtype=torch.float64)
    hidden[:, 0] += torch.where(response % 2 == 0, 0.5, -0.5)
    hidden[:, 1] += 5.0  # what all features share
    target = torch.randint(0, VOCABULARY, (len(response),), generator=generator)
    reference = -torch.rand(len(response), generator=generator, dtype=torch.float64)
    return TokenFeatures(hidden, target, response, count, reference)


@cache
def made() -> tuple[Positions, Tensor]:
    """Pairs of which a tenth is turned round."""
    generator = torch.Generator().manual_seed(0)
    pairs = [chat(k, f"question {k} of many", f"yes {k} one", f"no {k} two") for k in range(PAIRS + HELDOUT)]
    wrong = torch.zeros(PAIRS, dtype=torch.bool)
    wrong[torch.randperm(PAIRS, generator=generator)[: PAIRS // 10]] = True
    train, heldout = drawn(PAIRS, generator), drawn(HELDOUT, generator)
    unembedding = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    positions = Positions(
        train, heldout, PairSet(tuple(pairs[:PAIRS])), PairSet(tuple(pairs[PAIRS:])), unembedding, None, "m"
    )
    rows = torch.arange(PAIRS)
    turned = (
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if bad else pair
        for pair, bad in zip(positions.train_pairs, wrong.tolist(), strict=True)
    )
    return positions.redrawn(PairSet(tuple(turned)), rows, wrong), wrong


def test_extremes_are_the_largest_and_smallest_value_of_every_feature() -> None:
    positions, _ = made()
    found = extreme_features(positions.train)
    for response in (0, 1, 55):
        mine = positions.train.hidden[positions.train.response == response]
        expected = torch.cat([mine.amax(dim=0), mine.amin(dim=0)])
        assert torch.equal(found.flatten(0, 1)[response], expected)


def test_heldout_pairs_decide_what_is_harmful_in_long_responses() -> None:
    """Held-out pairs say that flipped pairs pull the wrong way; flipped held-out pairs say that the others do."""
    positions, wrong = made()
    rows = torch.arange(HELDOUT)
    against = replace(positions, heldout=positions.heldout.redrawn(rows, torch.ones(HELDOUT, dtype=torch.bool)))
    scores = [torch.tensor([row["harm_score"] for row in find_issues(each).issues]) for each in (positions, against)]
    assert roc_auc_score(wrong, scores[0]) > 0.95
    assert torch.allclose(scores[0], 1 - scores[1])


def test_planted_flips_are_found_and_what_length_explains_is_said() -> None:
    positions, wrong = made()
    found = find_issues(positions)
    assert roc_auc_score(wrong, [row["mislabel_score"] for row in found.issues]) > 0.97
    lengths = torch.bincount(positions.train.response).view(-1, 2)
    for row, (chosen, rejected) in zip(found.issues, lengths.tolist(), strict=True):
        assert row["length_difference"] == chosen - rejected
        assert all(
            0 <= row[f"{kind}_score"] <= 1 for kind in ("mislabel", "duplicate", "conflict", "harm", "unlearnable")
        )
    unequal = lengths[:, 0] != lengths[:, 1]
    longer = float((lengths[:, 0] > lengths[:, 1])[unequal].double().mean())
    assert found.settings["length"]["chosen_is_longer"] == pytest.approx(longer)
    assert abs(found.settings["length"]["correlation_with_left_out_margin"]) < 0.4  # lengths were drawn by chance
    sums = positions.train.per_response(positions.train.reference)
    assert found.issues[3]["reference_log_ratio"] == pytest.approx(float(sums[3, 0] - sums[3, 1]))


def test_the_kernel_turns_its_sign_with_a_pair_and_is_that_of_single_tokens_where_they_decide() -> None:
    positions, _ = made()
    every, rows = torch.arange(PAIRS), torch.arange(PAIRS)
    settings = SequenceSettings(last=0.7, extremes=0.2, covariates=0.4, first=0.5, bond=2.0)
    turned = torch.zeros(PAIRS, dtype=torch.bool)
    turned[5] = True
    kernels = [
        sequence_points(each, positions.train_pairs).kernel(every, every, settings)
        for each in (positions.train, positions.train.redrawn(rows, turned))
    ]
    sign = torch.where(turned, -1.0, 1.0).double()
    assert torch.allclose(kernels[1], kernels[0] * sign * sign[:, None], atol=1e-12)
    assert float(torch.linalg.eigvalsh(kernels[0])[0]) > -1e-9


def test_single_tokens_are_told_the_same_through_either_features() -> None:
    split, _ = two_concepts(60, 6, 4)
    ids = torch.tensor(
        [[chosen[0], rejected[0]] for chosen, rejected in zip(split.chosen_ids, split.rejected_ids, strict=True)]
    )
    features = TokenFeatures(split.hidden.repeat_interleave(2, dim=0), ids.flatten(), torch.arange(120), 60)
    positions = Positions(features, features, split.pairs, split.pairs, torch.zeros(2, 6), None, "m")
    assert list(find_issues(positions).issues) == list(find_issues(split).issues)
    assert isinstance(features.as_single(split.pairs), FeatureSet)


def test_repeated_and_contradicting_conversations_score_one() -> None:
    positions, _ = made()
    rows = torch.arange(PAIRS)
    rows[9], rows[21] = 5, 30
    pairs = list(positions.train_pairs)
    prompt, chosen, rejected = pairs[5].prompt, pairs[5].chosen, pairs[5].rejected
    shouted = (*prompt[:-1], {"role": "user", "content": "QUESTION  5 of\nmany"})
    pairs[9] = replace(pairs[9], prompt=shouted, chosen=chosen, rejected=rejected)
    pairs[21] = replace(pairs[30], id="p21", chosen=pairs[30].rejected, rejected=pairs[30].chosen)
    turned = rows.new_zeros(PAIRS).bool()
    turned[21] = True
    issues = find_issues(positions.redrawn(PairSet(tuple(pairs)), rows, turned)).issues
    assert (issues[9]["duplicate_of"], issues[9]["duplicate_score"], issues[9]["is_duplicate_issue"]) == (
        "p5",
        1.0,
        True,
    )
    assert (issues[21]["conflict_of"], issues[30]["conflict_of"]) == ("p30", "p21")
    assert {row["id"] for row in issues if row["is_conflict_issue"]} == {"p21", "p30"}
    assert {row["id"] for row in issues if row["is_duplicate_issue"]} == {"p5", "p9"}


def test_a_diagnosis_adds_up_and_says_what_cleaning_would_do() -> None:
    positions, wrong = made()
    recipe = head_recipe(beta=0.1, optimizer=GradientDescent(2.0), steps=4, eval_steps=2)
    run = forecast_positions(positions, recipe)
    found = diagnose_run(positions, recipe, pair="p3")
    assert found.sum_error < 1e-5
    margins, names = run.heldout.margins[-1], [pair.concept for pair in positions.heldout_pairs]
    for parts in found.margins[:-1]:
        mean = margins[[name == parts.concept for name in names]].mean()
        assert parts.margin == pytest.approx(float(mean), rel=1e-5)
        assert sum(parts.contributions) + parts.start + parts.residual == pytest.approx(parts.margin, rel=1e-9)
        assert parts.positive + parts.negative == pytest.approx(sum(parts.contributions), rel=1e-9)
    effects = [row["heldout_effect"] for row in found.suspects.issues]
    assert effects == list(found.margins[-1].contributions)
    assert sum(effects) == pytest.approx(float(margins.mean()), rel=1e-5)
    columns = found.interaction.raw[-1].sum(0).tolist()
    assert columns == pytest.approx([sum(parts.contributions) for parts in found.margins[:-1]], rel=1e-9)
    assert found.pair.margin == pytest.approx(float(run.train.margins[-1][3]), rel=1e-5)
    means = [float(torch.tensor(effects)[rows].mean()) for rows in (wrong, ~wrong)]
    assert means[0] < 0 < means[1]  # pairs that are turned round take away


def test_first_order_and_the_run_again_say_much_the_same() -> None:
    positions, _ = made()
    recipe = head_recipe(beta=0.1, optimizer=GradientDescent(2.0), steps=4, eval_steps=2)
    changes = plan_changes(find_issues(positions))
    effect = cleaning_effect(positions, changes, recipe)
    gone = [k for k, pair in enumerate(positions.train_pairs) if pair.id in {change.id for change in changes}]
    again = forecast_positions(edited(positions, drop(PAIRS, gone)), recipe).heldout.margins[-1]
    assert effect.rerun.margin == pytest.approx(float(again.mean()), rel=1e-5)
    assert effect.first_order.accuracy is None
    moved = effect.rerun.margin - effect.now.margin
    assert effect.first_order.margin - effect.now.margin == pytest.approx(moved, rel=0.3)
