"""The matrix of concepts is a plain sum of contributions, with and without the shared direction."""

import pytest
import torch

from margincast.diagnose import interaction
from margincast.frozen.attribution.contributions import attribute
from margincast.frozen.engine.spaces import token_spaces
from margincast.recipe.optimizers.sgd import SGD
from margincast.recipe.recipe import Recipe
from tests.problems import make_features
from tests.recipes import head_recipe


def test_cells_are_sums_of_contributions() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(24, 5, generator=generator).double() + 2.0
    chosen = torch.randint(4, (24,), generator=generator)
    unembedding = torch.randn(7, 5, generator=generator).double()
    features = make_features(unembedding, hidden, chosen, (chosen + 1) % 4, heldout=8)
    settings = {"beta": 0.5, "optimizer": SGD(0.1), "steps": 6, "batch_size": 4}
    found = attribute(features, head_recipe(**settings), at=(3, 6))
    matrix = interaction(features, found.values(), Recipe(beta=0.5))
    assert matrix.steps == (3, 6)
    train, heldout = features.train, features.heldout
    shared = train.hidden.mean(dim=0)
    shared /= shared.norm()
    projector = torch.eye(5).double() - shared[:, None] * shared
    # A contribution is linear in g_i . g_j, so that leaving the direction out scales it.
    scale = (heldout.hidden @ projector @ train.hidden.T) / (heldout.hidden @ train.hidden.T)
    _, targets = token_spaces(features, Recipe(beta=0.5))
    for at, step in enumerate(matrix.steps):
        contributions = found[step].contributions(targets)
        for a, trained in enumerate(matrix.trained):
            for b, held in enumerate(matrix.heldout):
                rows = [k for k, pair in enumerate(heldout.pairs) if pair.concept == held]
                columns = [k for k, pair in enumerate(train.pairs) if pair.concept == trained]
                raw = contributions[rows][:, columns].sum(dim=1).mean()
                rest = (contributions * scale)[rows][:, columns].sum(dim=1).mean()
                assert float(matrix.raw[at, a, b]) == pytest.approx(float(raw), abs=1e-12)
                assert float(matrix.without_shared[at, a, b]) == pytest.approx(float(rest), abs=1e-12)
