"""Rules choose what they say, parts are judged by the runs that they are, and what is said follows from the numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from margincast.diagnose import find_issues
from margincast.errors import InputError
from margincast.forecasting import forecast
from margincast.records import Features, PairSet
from margincast.selection import Selection, select
from margincast.selection.evidence import Evidence, draw_of
from margincast.selection.judging import choosing_noise, differences, weights
from margincast.selection.rules import in_turns, ranks, rule_of, rules
from tests.diagnose.helpers import made
from tests.recipes import head_recipe

RECIPE = head_recipe(steps=20, learning_rate=1e-2, beta=0.1)


@cache
def problem(pairs: int = 120, heldout: int = 60) -> tuple[Features, torch.Tensor]:
    """Two concepts, six pairs of one to one of the other; a fifth of the training labels is wrong."""
    generator = torch.Generator().manual_seed(0)
    total, hidden = pairs + heldout, 12
    concept = (torch.arange(total) % 7 == 0).long()
    sign = torch.where(torch.rand(total, generator=generator) < 0.5, 1.0, -1.0).double()
    features = 0.25 * torch.randn(total, hidden, generator=generator, dtype=torch.float64)
    features[torch.arange(total), concept] += sign
    wrong = torch.zeros(total, dtype=torch.bool)
    wrong[torch.randperm(pairs, generator=generator)[: pairs // 5]] = True
    every = made(features, (sign > 0) ^ wrong, concept)
    reference = torch.randn(total, generator=generator, dtype=torch.float64)
    every = replace(every, reference_chosen=reference - 1, reference_rejected=-reference - 1)
    train, held = (PairSet(part) for part in (every.pairs.pairs[:pairs], every.pairs.pairs[pairs:]))
    unembedding = torch.randn(2, hidden, generator=generator, dtype=torch.float64)
    tokens = torch.tensor([0, 1])
    return Features(every.select(train), every.select(held), tokens, unembedding, "made", "made"), wrong[:pairs]


@cache
def found() -> Selection:
    return select(problem()[0], RECIPE, keep=0.5, curve=True)


def evidence(features: Features) -> Evidence:
    whole = forecast(features, RECIPE)
    return Evidence(whole, whole.target(), draw_of(features.train_pairs, 0), 0)  # type: ignore[union-attr, arg-type]


def test_a_part_is_worth_what_the_run_on_it_gives() -> None:
    """Against a forecast of the same pairs made by hand; ties aside, the largest values are kept."""
    features, _ = problem()
    for name in ("reference_low", "out_of_fold", "random"):
        choice = found().rules[name]
        rows = choice.rows.tolist()
        assert len(rows) == 60 and rows == sorted(rows)
        left = np.setdiff1d(np.arange(120), rows)
        assert float(choice.value[rows].min()) >= float(choice.value[left].max())
        part = replace(
            features, train=features.train.select(PairSet(tuple(features.train_pairs.pairs[k] for k in rows)))
        )
        margins = forecast(part, RECIPE).heldout.margins[-1]
        assert torch.allclose(choice.margins[0], margins, rtol=0, atol=1e-12)
        judges = found().judges
        if name != "random":
            assert choice.worth.accuracy.value == pytest.approx(float((margins[judges] > 0).double().mean()))
            assert choice.worth.margin.value == pytest.approx(float(margins[judges].mean()))


def test_rules_keep_what_they_say() -> None:
    features, wrong = problem()
    chosen = found().rules
    reference = features.train.reference_chosen - features.train.reference_rejected
    rest = torch.ones(120, dtype=torch.bool)
    rest[chosen["reference_high"].rows] = False
    assert reference[chosen["reference_high"].rows].min() >= reference[rest].max()
    assert float(wrong[chosen["out_of_fold"].rows].double().mean()) < 0.05
    counts = [int((torch.tensor([p.concept == c for p in features.train_pairs])[chosen["balanced"].rows]).sum())
              for c in features.train_pairs.concepts]  # fmt: skip
    assert min(counts) == 18  # all that there are of the rare one
    assert set(found().left_out) == {"length_match", "distinct"}
    suspects = torch.tensor([row["is_mislabel_issue"] for row in find_issues(features.train).issues])
    assert 0 < int(suspects.sum()) < 60 and not bool(suspects[chosen["unsuspected"].rows].any())


def test_influence_is_the_mean_of_the_attribution() -> None:
    seen = evidence(problem()[0])
    by_hand = seen.whole.attribution().values
    assert torch.allclose(seen.influence, by_hand, rtol=0, atol=1e-12 * float(by_hand.abs().max()))


def test_no_pair_that_a_rule_looked_at_judges() -> None:
    assert len(found().judges) == 30
    alone = select(problem()[0], RECIPE, keep=0.5, rules=["out_of_fold"])
    assert len(alone.judges) == 60 and alone.picked == "out_of_fold"


def test_the_same_again_and_in_any_order_of_ties() -> None:
    again = select(problem()[0], RECIPE, keep=0.5)
    assert again.advice == found().advice[: len(again.advice)]
    assert all(torch.equal(again.rules[name].rows, choice.rows) for name, choice in found().rules.items())
    pairs = problem()[0].train_pairs
    turned = PairSet(pairs.pairs[::-1])
    assert torch.equal(draw_of(pairs, 3), draw_of(turned, 3).flip(0))


def test_advice_is_computed() -> None:
    best = found().rules[found().picked]
    text = found().advice[0]
    if found().picked == "random":
        assert "Random is as good" in text
        assert all(c.over_random.low <= 0 for n, c in found().rules.items() if n != "random")
    else:
        assert best.over_random.low > 0 and f"{best.worth.accuracy.value:.1%}" in text


def test_keep_of_all_and_of_none() -> None:
    features, _ = problem()
    assert select(features, RECIPE, keep=7, rules=["gap_small"]).size == 7
    whole = select(features, RECIPE, keep=1.0, rules=["reference_high"])
    assert [pair.id for pair in whole.chosen] == [pair.id for pair in features.train_pairs]
    assert whole.rules["reference_high"].over_all.value == 0
    for keep, said in (
        (0, "none"),
        (121, "there are 120"),
        (0.0, "a share"),
        (1.5, "a share"),
        (float("nan"), "share"),
    ):
        with pytest.raises(InputError, match=said):
            select(features, RECIPE, keep=keep)
    with pytest.raises(InputError, match="same value"):
        select(features, RECIPE, rules=["distinct"])
    with pytest.raises(InputError, match="did you mean influence"):
        select(features, RECIPE, rules=["influense"])
    with pytest.raises(InputError, match="train 'head'"):
        select(features, replace(RECIPE, train="all"))


def test_two_rules_are_the_mean_of_their_ranks() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 1.0, 2.0])).tolist() == pytest.approx([1.0, 1 / 6, 1 / 6, 2 / 3])
    seen = evidence(problem()[0])
    one, two = (rule_of(name).value(seen) for name in ("out_of_fold+balanced", "balanced+out_of_fold"))
    assert torch.equal(one, two)
    with pytest.raises(InputError, match="join two different rules"):
        rule_of("random+random")
    assert rules()["influence"].looks and rule_of("balanced+influence").looks


def test_groups_give_in_turns() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    value = in_turns(groups, torch.tensor([0.1, 0.3, 0.2, 0.9, 0.8, 0.5], dtype=torch.float64))
    assert value.tolist() == [0.0, -2.0, -1.0, -1.0, 0.0, 0.0]


def test_intervals_hold_and_the_best_of_many_is_no_better_for_it() -> None:
    """Twenty rules that are all as good as random: in 95% of trials, about, none of them is beyond noise."""
    generator = np.random.default_rng(0)
    false = 0
    for trial in range(60):
        right = (generator.random((20, 200)) < 0.8).astype(float)
        parts = (generator.random((5, 200)) < 0.8).astype(float)
        gaps = differences(right, parts.mean(axis=0), choosing_noise(parts), weights(200, trial))
        false += any(gap.low > 0 for gap in gaps)
    assert false <= 6
    better = np.concatenate([right[:1], np.ones((1, 200))])
    assert differences(better, parts.mean(axis=0), choosing_noise(parts), weights(200, 0))[1].low > 0.05


def test_what_more_pairs_are_worth() -> None:
    budget = found().budget
    assert budget is not None
    assert budget.sizes == (15, 30, 60, 120)
    half = found().rules["reference_low"].worth.accuracy
    assert budget.curves["reference_low"][2] == half
    assert {each[-1].value for each in budget.curves.values()} == {found().whole.accuracy.value}
    assert set(budget.concepts) == set(problem()[0].train_pairs.concepts)
    assert budget.next_worth == pytest.approx(budget.doubling.value * np.log2(1 + 1000 / 120))


def test_repeats_go_first() -> None:
    features, _ = problem()
    pairs = list(features.train_pairs.pairs)
    pairs[5] = replace(pairs[0], id=pairs[5].id, prompt=str(pairs[0].prompt).upper().replace(" ", "  "))
    again = replace(features, train=replace(features.train, pairs=PairSet(tuple(pairs))))
    value = rule_of("distinct").value(evidence(again))
    assert value.nonzero().flatten().tolist() == [5]
