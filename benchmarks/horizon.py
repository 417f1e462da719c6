"""Gradient flow on SmolLM2's features of persona:k4, to ten times the time at which the loss has halved.

Needs the persona files ($MARGINCAST_PERSONA_DIR) and minutes, nearly all of them for RK45. Ratios are passes over the
features, RK45's over ours, at an error of ours that is no larger; a pass of either is the same fused gradient.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import RK45
from torch import Tensor

from benchmarks.harness import Row
from margincast.data import load_pairs
from margincast.features import extract_features
from margincast.frozen.engine.spaces import token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.states import gradient_flow
from margincast.recipe.batches import full_batch
from margincast.recipe.losses import get_loss
from margincast.recipe.recipe import Recipe


def rows() -> Iterator[Row]:
    pairs = load_pairs("persona:k4", persona_dir=Path(os.environ["MARGINCAST_PERSONA_DIR"]))
    features = extract_features("smollm2", *pairs.split(holdout=0.1, seed=1234))
    space, _ = token_spaces(features, Recipe(beta=0.01), torch.float32)
    halved = halving_time(space)
    for title, end in (("halving time", halved), ("10 x halving time", 10 * halved)):
        exact = gradient_flow(space, [end], rtol=1e-9).states[0]
        start = time.perf_counter()
        theirs, evaluations = runge_kutta(space, end, rtol=1e-4)
        seconds_peer = time.perf_counter() - start
        wrong = float((theirs - exact).norm())
        for rtol in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
            start = time.perf_counter()
            flow = gradient_flow(space, [end], rtol=rtol)
            spent = time.perf_counter() - start
            if float((flow.states[0] - exact).norm()) <= wrong:
                break
        relative, ratio = wrong / float(exact.norm()), evaluations / flow.passes
        peer = f"RK45, {evaluations} passes, error {relative:.1e}"
        name = f"flow to {title} ({end:.3g}), {flow.passes} passes"
        yield Row(name, peer, relative < 1e-3, ratio, ratio, ratio, ">= 10", spent, seconds_peer)


def halving_time(space: TokenSpace) -> float:
    """When the mean training loss is half of log 2, to a few digits."""

    def halved(state: Tensor) -> bool:
        return bool(get_loss("sigmoid").value(space.margins(state.to(space.dtype))).mean() <= 0.5 * np.log(2.0))

    after = next(end for k in range(1, 60) if halved(gradient_flow(space, [end := 2.0**k], rtol=1e-3).states[0]))
    fine = np.linspace(after / 2, after, 33)
    return float(
        next(t for t, s in zip(fine, gradient_flow(space, list(fine), rtol=1e-4).states, strict=True) if halved(s))
    )


def runge_kutta(space: TokenSpace, end: float, rtol: float) -> tuple[Tensor, int]:
    """What `solve_ivp(method="RK45")` does, without keeping every step: dW at `end`, and its evaluations."""
    shape, batch = space.zeros().shape, next(full_batch(len(space), 1))

    def velocity(_: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        return -space.gradient(torch.from_numpy(flat).view(shape), get_loss("sigmoid"), batch).flatten().numpy()

    solver = RK45(velocity, 0.0, np.zeros(shape.numel()), end, rtol=rtol, atol=1e-10)
    while solver.status == "running":
        solver.step()
    return torch.from_numpy(solver.y).view(shape), solver.nfev
