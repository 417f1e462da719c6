"""Planted errors are found, scores mean what they say, and a table survives being saved."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score

from margincast.diagnose.calibrate import fit_noise
from margincast.diagnose.kernel import pair_points
from margincast.diagnose.kinds import kinds
from margincast.diagnose.learning import FALSE_SHARE, beyond_chance, harm
from margincast.diagnose.leave_one_out import spectrum_of
from margincast.diagnose.mislabel import mislabelled_in
from margincast.diagnose.suspects import Suspects, find_issues
from margincast.diagnose.treatment import treatment
from margincast.errors import InputError
from tests.diagnose.helpers import made, two_concepts


@pytest.fixture(scope="module")
def found() -> tuple[Suspects, torch.Tensor]:
    split, wrong = two_concepts(240, 12, 0)
    return find_issues(split), wrong


def test_wrong_labels_are_found(found: tuple[Suspects, torch.Tensor]) -> None:
    suspects, wrong = found
    scores = [row["mislabel_score"] for row in suspects.issues]
    assert roc_auc_score(wrong, scores) > 0.97
    flagged = torch.tensor([row["is_mislabel_issue"] for row in suspects.issues])
    assert bool((flagged == (torch.tensor(scores) > 0.5)).all())
    assert float(wrong[flagged].double().mean()) > 0.85


def test_scores_are_in_the_unit_interval_and_rows_say_where(found: tuple[Suspects, torch.Tensor]) -> None:
    suspects, _ = found
    for line, row in enumerate(suspects.issues, start=1):
        assert (row["id"], row["source"], row["line"]) == (f"p{line - 1}", "made.jsonl", line)
        for kind in kinds():
            assert 0.0 <= row[f"{kind}_score"] <= 1.0
            assert isinstance(row[f"is_{kind}_issue"], bool)


def test_a_pairs_own_label_has_no_part_in_its_first_left_out_margin() -> None:
    """Turning one label round turns its margin round, and nothing else about it."""
    split, _ = two_concepts(40, 6, 1)
    points = pair_points(split, treatment(split.hidden)(split.hidden), split.pairs.concepts)
    swapped = points.chosen.clone(), points.rejected.clone()
    swapped[0][7], swapped[1][7] = points.rejected[7], points.chosen[7]
    from margincast.diagnose.kernel import KernelSettings, PairPoints, pair_kernel

    other = PairPoints(points.treated, *swapped, points.concept)
    margins = [
        spectrum_of(pair_kernel(each, each, KernelSettings())).left_out(torch.ones(40).double(), 0.5)[7]
        for each in (points, other)
    ]
    assert float(margins[0]) == pytest.approx(-float(margins[1]), rel=1e-9)


def test_any_kernel_of_pairs_will_do() -> None:
    """One of long responses, for example: here that of two far groups, with one pair turned round."""
    sign = torch.ones(30).double()
    sign[4] = -1
    kernel = sign[:, None] * sign * (torch.full((30, 30), 0.5) + 0.5 * torch.eye(30)).double()
    result = mislabelled_in(spectrum_of(kernel), torch.zeros(30).long())
    assert int(result.probability.argmax()) == 4


def test_repeated_and_contradicting_prompts_score_one() -> None:
    split, _ = two_concepts(60, 8, 2)
    prompts = [f"Is number {k} something you would say?" for k in range(60)]
    prompts[9] = prompts[5]  # preferences of 5 and 9 are alike before errors, whose rows are drawn apart below
    yes = torch.tensor([ids == (1,) for ids in split.chosen_ids])
    yes[9] = yes[5]
    prompts[20], yes[20] = prompts[31], ~yes[31]
    hidden = split.hidden.clone()
    hidden[9], hidden[20] = hidden[5], hidden[31]
    issues = find_issues(made(hidden, yes, torch.arange(60) % 2, prompts)).issues
    assert issues[5]["duplicate_score"] == issues[9]["duplicate_score"] == 1.0
    assert (issues[5]["duplicate_of"], issues[9]["duplicate_of"]) == ("p9", "p5")
    assert issues[20]["conflict_score"] == issues[31]["conflict_score"] == 1.0
    assert (issues[20]["conflict_of"], issues[31]["conflict_of"]) == ("p31", "p20")
    assert {row["id"] for row in issues if row["is_conflict_issue"]} == {"p20", "p31"}


def test_harm_is_the_downward_share_of_pushes() -> None:
    split, _ = two_concepts(50, 8, 3)
    points = pair_points(split, treatment(split.hidden)(split.hidden), split.pairs.concepts)
    found = harm(points)
    signs = torch.where(points.chosen == 1, 1.0, -1.0).double()
    for i in (0, 17, 49):
        pushes = [
            float(signs[i] * signs[j] * (points.treated[i].double() @ points.treated[j].double() + 0.01))
            for j in range(50)
            if j != i and points.concept[j] == points.concept[i]
        ]
        expected = sum(-p for p in pushes if p < 0) / sum(map(abs, pushes))
        assert float(found.downward[i]) == pytest.approx(expected, rel=1e-9)
        assert float(found.by_chance[i]) == pytest.approx(ttest_1samp(pushes, 0.0, alternative="less").pvalue)


def test_harm_looks_at_heldout_pairs_where_they_are_known() -> None:
    """Of the pair's concept, and at all of them where their concepts have other names."""
    split, _ = two_concepts(50, 8, 3)
    points = pair_points(split, treatment(split.hidden)(split.hidden), split.pairs.concepts)
    heldout = torch.arange(50) >= 30
    signs = torch.where(points.chosen == 1, 1.0, -1.0).double()

    def expected(row: int, columns: list[int]) -> float:
        treated = points.treated.double()
        pushes = [float(signs[row] * signs[j] * (treated[row] @ treated[j] + 0.01)) for j in columns]
        return float(ttest_1samp(pushes, 0.0, alternative="less").pvalue)

    found = harm(points, heldout).by_chance
    same = [j for j in range(30, 50) if points.concept[j] == points.concept[4]]
    assert float(found[4]) == pytest.approx(expected(4, same))
    other = replace(points, concept=torch.where(heldout, 2, points.concept))
    assert float(harm(other, heldout).by_chance[4]) == pytest.approx(expected(4, list(range(30, 50))))


def test_few_of_many_chance_findings_are_called_harmful() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(1000, generator=generator, dtype=torch.float64)
    assert not beyond_chance(chance).any()
    planted = chance.clone()
    planted[:50] = 1e-6
    found = beyond_chance(planted)
    ranked = sorted(planted.tolist())  # Benjamini and Hochberg, one rank at a time
    limit = max(value for rank, value in enumerate(ranked, start=1) if value <= FALSE_SHARE * rank / 1000)
    assert torch.equal(found, planted <= limit) and found[:50].all()


def test_coins_do_not_harm() -> None:
    """Labels without any relation to the features: about as many pairs are flagged as chance allows."""
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(400, 40, generator=generator)
    yes = torch.rand(400, generator=generator) < 0.5
    issues = find_issues(made(hidden, yes, torch.arange(400) % 2)).issues
    assert sum(row["is_harm_issue"] for row in issues) < 0.01 * 400


def test_noise_of_a_known_rate_is_estimated() -> None:
    generator = torch.Generator().manual_seed(5)
    margins = 1 + 0.3 * torch.randn(4000, generator=generator).double()
    margins[:400] *= -1
    noise = fit_noise(margins, torch.zeros(4000).long())
    assert float(noise.rate[0]) == pytest.approx(0.1, abs=0.02)


def test_save_and_load(found: tuple[Suspects, torch.Tensor], tmp_path: Path) -> None:
    suspects, _ = found
    suspects.save(tmp_path)
    again = Suspects.load(tmp_path)
    assert list(again.issues) == list(suspects.issues)
    assert again.pairs.pairs == suspects.pairs.pairs
    assert again.report() == suspects.report()
    (tmp_path / "issues.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="damaged"):
        Suspects.load(tmp_path)
    with pytest.raises(InputError, match="holds no suspects"):
        Suspects.load(tmp_path / "elsewhere")


def test_report_shows_the_worst_and_names_unknown_kinds(found: tuple[Suspects, torch.Tensor]) -> None:
    suspects, _ = found
    assert suspects.worst("mislabel", 1)[0]["id"] in suspects.report()
    with pytest.raises(InputError, match="no issue 'typos'"):
        suspects.worst("typos")


def test_long_responses_and_too_few_pairs_are_refused() -> None:
    split, _ = two_concepts(20, 4, 0)
    from dataclasses import replace

    with pytest.raises(InputError, match="give those of `extract_positions`"):
        find_issues(replace(split, chosen_ids=((1, 2), *split.chosen_ids[1:])))
    with pytest.raises(InputError, match="there are 2 pairs"):
        find_issues(made(torch.eye(2), torch.tensor([True, False]), torch.zeros(2).long()))
