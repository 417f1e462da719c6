"""What `inspect` puts together: both splits, all sides, raw and centred."""

from __future__ import annotations

import math

import pytest
import torch

from margincast.records import PairSet
from margincast.report.tables import structure_rows
from margincast.structure import inspect_features
from margincast.structure.cosines import centred, mean_cosines, membership
from tests.problems import make_features, make_pairs


def test_training_and_held_out_pairs_are_taken_together() -> None:
    generator = torch.Generator().manual_seed(0)
    side = torch.tensor([1.0, 1.0, -1.0, -1.0] * 4, dtype=torch.float64)[
        :, None
    ]  # " Yes" and " No" as `make_pairs` has
    hidden = torch.randn(16, 4, generator=generator, dtype=torch.float64) + 1.0 + 3.0 * side
    chosen = torch.tensor([1, 2] * 8)
    features = make_features(torch.randn(5, 4, generator=generator), hidden, chosen, 3 - chosen, heldout=4)
    structure = inspect_features(features)
    pairs = PairSet(features.train.pairs.pairs + features.heldout.pairs.pairs)
    assert (structure.pairs, structure.hidden, structure.concepts) == (16, 4, ("concept-0", "concept-1"))
    for name, side in (("both", 0), ("matching", 1), ("non_matching", -1)):
        member = membership(pairs, pairs.concepts, side)
        assert torch.equal(structure.raw[name], mean_cosines(hidden, member))
        assert torch.equal(structure.centred_[name], mean_cosines(centred(hidden), member))
    assert structure.mean_between(structure.raw["both"]) == pytest.approx(float(structure.raw["both"][0, 1]))
    assert structure.clusters is not None
    assert structure.sharing.max_token_count == 2


def test_one_concept_has_nothing_between() -> None:
    hidden = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    one = make_pairs(6)
    features = make_features(torch.eye(4), hidden, torch.tensor([1, 2] * 3), torch.tensor([2, 1] * 3), heldout=2)
    object.__setattr__(features.train, "pairs", PairSet(one.pairs[:4]))
    object.__setattr__(features.heldout, "pairs", PairSet(one.pairs[4:]))
    structure = inspect_features(features)
    assert math.isnan(structure.mean_between(structure.raw["both"]))


def test_what_there_is_not_has_no_row() -> None:
    lengths = dict.fromkeys(("shared_norm", "noise", "noise_energy", "effective_dimension"), math.nan)
    cosines = {"mean_cosine_raw": 0.9, "mean_cosine_centred": -0.1}
    results = {**cosines, **lengths, "concept_lengths": None, "max_token_count": 4, "interacting_concepts": 3}
    assert structure_rows(results) == [
        ["mean cosine between concepts, raw", "0.9"],
        ["mean cosine between concepts, centred", "-0.1"],
        ["Z, concepts that use one token", "4"],
        ["largest number of interacting concepts", "3"],
    ]
