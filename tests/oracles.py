"""Reference computations, as plain as they can be written: loops over the definitions, and PyTorch's own training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from margincast.frozen.engine.state import TokenSpace
from margincast.recipe.batches import Batch, full_batch
from margincast.recipe.losses import Loss, get_loss


def margins_loop(space: TokenSpace, state: Tensor) -> list[float]:
    """beta * (dW[w] . g - dW[l] . g), pair by pair, coordinate by coordinate."""
    out = []
    for i in range(len(space)):
        w, l = int(space.chosen[i]), int(space.rejected[i])  # noqa: E741 (the paper's letter)
        dots = [float(state[w, k] - state[l, k]) * float(space.features[i, k]) for k in range(state.shape[1])]
        out.append(space.beta * math.fsum(dots))
    return out


def pull_loop(space: TokenSpace, coefficients: Sequence[float]) -> Tensor:
    """sum_i c_i (e_w - e_l) g_i^T, entry by entry."""
    out = torch.zeros(space.tokens, space.features.shape[1], dtype=torch.float64)
    for i in range(len(space)):
        for k in range(out.shape[1]):
            out[space.chosen[i], k] += coefficients[i] * float(space.features[i, k])
            out[space.rejected[i], k] -= coefficients[i] * float(space.features[i, k])
    return out


def kernel_loop(left: TokenSpace, right: TokenSpace) -> Tensor:
    """C_ij = (delta_i . delta_j)(g_i . g_j), pair by pair; delta . delta counted from equal tokens."""
    out = torch.zeros(len(left), len(right), dtype=torch.float64)
    for i in range(len(left)):
        for j in range(len(right)):
            shared = (
                int(left.chosen[i] == right.chosen[j])
                + int(left.rejected[i] == right.rejected[j])
                - int(left.chosen[i] == right.rejected[j])
                - int(left.rejected[i] == right.chosen[j])
            )
            out[i, j] = shared * float(left.features[i].double() @ right.features[j].double())
    return out


def sigma(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def flow_velocity(space: TokenSpace, state: Tensor) -> Tensor:
    """Eq. 6, plainly: (beta/N) sum_i sigma(-r_i) delta_i g_i^T."""
    weights = [space.beta / len(space) * sigma(-r) for r in margins_loop(space, state)]
    return pull_loop(space, weights)


def runge_kutta(space: TokenSpace, state: Tensor, time: float, steps: int) -> Tensor:
    """The flow for `time` from `state`: the classic fourth-order rule with equal steps."""
    h = time / steps
    for _ in range(steps):
        k1 = flow_velocity(space, state)
        k2 = flow_velocity(space, state + h / 2 * k1)
        k3 = flow_velocity(space, state + h / 2 * k2)
        k4 = flow_velocity(space, state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def train_head(
    unembedding: Tensor,
    train: TokenSpace,
    probe: TokenSpace,
    ids: Sequence[int],
    batches: Iterable[Batch],
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    make_schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    max_grad_norm: float | None = None,
) -> tuple[Tensor, Tensor]:
    """DPO on a whole V x d head with PyTorch: softmax over the vocabulary, autodiff, `torch.optim`.

    ids: vocabulary entry of every row of the state. Returns margins and chosen rewards of `probe` after every step,
    (steps, pairs) each.
    """
    token = torch.tensor(ids)
    weight = unembedding.clone().requires_grad_()
    optimizer = make_optimizer([weight])
    scheduler = make_schedule(optimizer) if make_schedule else None

    def rewards(space: TokenSpace, rows: Tensor) -> tuple[Tensor, Tensor]:
        hidden = space.features[rows]
        now, before = (log_softmax(hidden @ matrix.T, dim=-1) for matrix in (weight, unembedding))
        sides = (token[side[rows]][:, None] for side in (space.chosen, space.rejected))
        chosen, rejected = (space.beta * (now.gather(1, s) - before.gather(1, s)).squeeze(1) for s in sides)
        return chosen, rejected

    margins, chosen_rewards = [], []
    for batch in batches:
        optimizer.zero_grad()
        chosen, rejected = rewards(train, batch.rows)
        (batch.weights.to(weight) * -logsigmoid(chosen - rejected)).sum().backward()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([weight], max_grad_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        with torch.no_grad():
            chosen, rejected = rewards(probe, torch.arange(len(probe)))
        margins.append(chosen - rejected)
        chosen_rewards.append(chosen)
    return torch.stack(margins), torch.stack(chosen_rewards)


def sees_loop(sequences: Sequence[Sequence[int]]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every (prefix, prefix it can see) of the sequences: a token sees itself and what comes before it."""
    prefixes = {tuple(s[:k]) for s in sequences for k in range(1, len(s) + 1)}
    return {(p, p[:k]) for p in prefixes for k in range(1, len(p) + 1)}


def response_logp(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Sum of the response's log-probabilities: one call of the model on one sequence, nothing merged or padded."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
    logps = log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    start = len(prompt) - 1
    return torch.stack([logps[start + k, token] for k, token in enumerate(response)]).sum()


def mean_cosine_loop(left: Tensor, right: Tensor, same: bool) -> float:
    """Average cosine over all pairs of rows, of two different rows when both sides are the same group."""
    values = []
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            if not (same and i == j):
                size = float(x.norm() * y.norm())
                values.append(float(x @ y) / size if size else 0.0)
    return math.fsum(values) / len(values) if values else float("nan")


def wilson_by_bisection(successes: int, total: int, z: float) -> tuple[float, float]:
    """Both p at which the score test just rejects: |share - p| = z sqrt(p (1 - p) / n)."""
    share = successes / total

    def edge(inside: float, outside: float) -> float:
        for _ in range(200):
            middle = (inside + outside) / 2
            if abs(share - middle) <= z * math.sqrt(middle * (1 - middle) / total):
                inside = middle
            else:
                outside = middle
        return inside

    return edge(share, 0.0), edge(share, 1.0)


def explicit_flow(
    space: TokenSpace, times: Sequence[float], loss: Loss | str = "sigmoid", *, rtol: float = 1e-10
) -> Tensor:
    """Gradient flow by scipy's explicit Runge-Kutta method of order 8, (times, T, hidden)."""
    loss, whole, shape = get_loss(loss), next(full_batch(len(space), 1)), space.zeros().shape

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        return -space.gradient(torch.from_numpy(flat).view(shape), loss, whole).flatten().numpy()

    start = np.zeros(shape.numel())
    found = solve_ivp(velocity, (0.0, times[-1]), start, method="DOP853", t_eval=times, rtol=rtol, atol=1e-14)
    assert found.success, found.message
    return torch.from_numpy(found.y.T.copy()).view(len(times), *shape)
