"""Pairs from everywhere in feature space: clusters give one pair each in turns.

k-centre greedy would compare every pair with every pair that is kept, which is quadratic where a share is kept. Here
k-means finds the clusters on a sample, in a random projection, and every pair joins its nearest centre: linear.
"""

import torch
from torch import Tensor

from margincast.selection.evidence import BLOCK, Evidence
from margincast.selection.rules import RULES, Rule, in_turns
from margincast.structure.kmeans import assign, kmeans

CLUSTERS, WIDTH, SAMPLE = 128, 64, 4096
SMALLEST = 8  # pairs in a cluster, on average


def _value(evidence: Evidence) -> Tensor:
    pooled, generator = evidence.pooled, torch.Generator().manual_seed(evidence.seed)
    count = min(CLUSTERS, max(1, len(pooled) // SMALLEST))
    width = min(WIDTH, pooled.shape[1])
    turn = torch.randn(pooled.shape[1], width, generator=generator) / width**0.5
    mean = pooled.mean(dim=0)
    points = torch.cat([(part - mean) @ turn for part in torch.split(pooled, BLOCK)])
    sample = points[torch.randperm(len(points), generator=generator)[:SAMPLE]]
    centres = kmeans(sample[None], count, generator, restarts=1)
    groups = torch.cat([assign(part[None], centres)[0] for part in torch.split(points, BLOCK)])
    return in_turns(groups, evidence.draw)


RULES.register("diverse")(Rule(f"up to {CLUSTERS} clusters of the features, in turns", _value, rank=7))
