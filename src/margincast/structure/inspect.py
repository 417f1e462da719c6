"""What is the structure of a data set's embeddings, and which conditions of the theorems does it meet? (Section 5)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from margincast.records import Features, PairSet
from margincast.results import Result
from margincast.structure.clusters import ClusterEstimate, TokenSharing, estimate_clusters, token_sharing
from margincast.structure.cosines import centred, mean_cosines, membership


@dataclass(frozen=True)
class Structure(Result):
    """Cosines between concepts and estimates of the preference distribution. `measured_conditions` holds the theorems'
    hypotheses against it.

    raw, centred_: average cosines by side, (concepts, concepts) each: "both", "matching", "non_matching"
    clusters: None when no concept has two clusters
    """

    presenter: ClassVar[str] = "structure"

    concepts: tuple[str, ...]
    raw: dict[str, Tensor]
    centred_: dict[str, Tensor]
    clusters: ClusterEstimate | None
    sharing: TokenSharing
    pairs: int
    hidden: int

    def mean_between(self, cosines: Tensor) -> float:
        """Mean of a cosine matrix over pairs of two different concepts; nan with a single concept."""
        values = cosines[~torch.eye(len(self.concepts), dtype=torch.bool)]
        return float(values[~values.isnan()].mean())


def inspect_features(features: Features) -> Structure:
    """Structure of training and held-out pairs together."""
    pairs = PairSet(features.train.pairs.pairs + features.heldout.pairs.pairs)
    embeddings = torch.cat([features.train.hidden, features.heldout.hidden])
    away = centred(embeddings)
    by_side = {
        name: membership(pairs, pairs.concepts, side)
        for name, side in (("both", 0), ("matching", 1), ("non_matching", -1))
    }
    return Structure(
        concepts=pairs.concepts,
        raw={name: mean_cosines(embeddings, member) for name, member in by_side.items()},
        centred_={name: mean_cosines(away, member) for name, member in by_side.items()},
        clusters=estimate_clusters(embeddings, pairs),
        sharing=token_sharing(
            pairs,
            features.train.chosen_ids + features.heldout.chosen_ids,
            features.train.rejected_ids + features.heldout.rejected_ids,
        ),
        pairs=len(pairs),
        hidden=embeddings.shape[1],
    )
