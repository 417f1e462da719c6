"""Records as figures take them, without a model."""

import torch

from margincast.records import Pair, PairSet, SplitTrajectory, Trajectory
from margincast.structure.clusters import TokenSharing
from margincast.structure.inspect import Structure

STEPS = (0, 5, 10)


def pairs(concepts: list[str], count: int, split: str) -> PairSet:
    return PairSet(
        tuple(
            Pair(f"{split}:{concept}:{number}", concept, "Is it?", " Yes", " No", "file.jsonl", number + 1)
            for concept in concepts
            for number in range(count)
        )
    )


def trajectory(concepts: list[str], heldout: int = 3, seed: int = 0, last: float = 1.0) -> Trajectory:
    """Margins that grow from 0 to about `last`, with `heldout` held-out pairs of every concept."""
    generator = torch.Generator().manual_seed(seed)

    def split(name: str, count: int) -> SplitTrajectory:
        members = pairs(concepts, count, name)
        ends = last * (1 + torch.rand(len(members), generator=generator, dtype=torch.float64))
        return SplitTrajectory(members, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[:, None] * ends)

    return Trajectory(STEPS, split("train", 4), split("heldout", heldout), beta=0.1, origin="forecast")


def structure(concepts: list[str], nan: bool = False) -> Structure:
    """Cosine matrices of 1 on the diagonal and 0.5 off it; with `nan` the last concept has none."""
    size = len(concepts)
    matrix = torch.full((size, size), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
    if nan:
        matrix[-1, :] = matrix[:, -1] = float("nan")
    sides = dict.fromkeys(("both", "matching", "non_matching"), matrix)
    return Structure(tuple(concepts), sides, sides, None, TokenSharing(1, 0, None), 4 * size, 8)
