"""Which concept helps or harms which, and when?

    M_ab(s) = mean over held-out pairs j of concept b of the contributions of all training pairs of concept a

after s steps, so that a column adds up to concept b's mean held-out margin (less what belongs to no pair). Features
share a large component; with u its direction, the mean training feature, the matrix without it takes
g_i^T (I - u u^T) g_j in place of g_i^T g_j.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.frozen.attribution.contributions import Attribution
from margincast.frozen.engine.spaces import token_spaces
from margincast.recipe.recipe import Recipe
from margincast.records import Features
from margincast.results import Json


@dataclass(frozen=True)
class Interaction:
    """raw, without_shared: (steps, training concepts, held-out concepts), in units of the margin

    For responses of many tokens only the last step, and None for `without_shared`.
    """

    steps: tuple[int, ...]
    trained: tuple[str, ...]
    heldout: tuple[str, ...]
    raw: Tensor
    without_shared: Tensor | None

    def as_dict(self) -> Json:
        return {
            "steps": list(self.steps),
            "trained": list(self.trained),
            "heldout": list(self.heldout),
            "raw": self.raw.tolist(),
            "without_shared": None if self.without_shared is None else self.without_shared.tolist(),
        }


def interaction(features: Features, attributions: Iterable[Attribution], recipe: Recipe) -> Interaction:
    """The matrix at the step of each of `attributions`, which `frozen.attribution.contributions.attribute` makes.

    Takes them one at a time: an iterator that makes each when it is asked for keeps memory to that of one.
    """
    _, targets = token_spaces(features, recipe)
    trained, heldout = features.train.pairs.concepts, features.heldout.pairs.concepts
    groups = torch.tensor([trained.index(pair.concept) for pair in features.train.pairs])
    rows = [
        torch.tensor([k for k, pair in enumerate(features.heldout.pairs) if pair.concept == name]) for name in heldout
    ]
    shared = features.train.hidden.double().mean(dim=0)
    shared /= shared.norm().clamp_min(1e-300)

    def means(states: Tensor) -> Tensor:
        moved = [targets.moved(state) for state in states]
        return torch.stack([torch.stack([each[index].mean() for index in rows]) for each in moved])

    steps, raw, rest = [], [], []
    for attribution in attributions:
        states = attribution.by_group(groups, len(trained))
        steps.append(attribution.step)
        raw.append(means(states))
        rest.append(means(states - (states @ shared)[..., None] * shared))
    return Interaction(tuple(steps), trained, heldout, torch.stack(raw), torch.stack(rest))
