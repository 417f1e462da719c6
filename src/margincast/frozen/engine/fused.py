"""How is a gradient taken with one pass over the features? Margins and pull of a few rows while they are in cache.

Both sums of Eq. 6, r_i = beta delta_i^T dW g_i and sum_i f'(r_i) delta_i g_i^T, need row g_i, the second one a number
that the first one yields. Two matrix products read the features twice; here four rows are dotted with the state, the
slope of the loss is taken, and the rows are added to the pull before they leave the core's L2. Memory is what limits
the step, so this is twice as fast, and storing the features in 16 bits doubles it again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from margincast.frozen.engine.products import BOTH, MARGINS, PULL
from margincast.recipe.loss import Closed, Loss

try:
    from margincast.frozen.engine.kernel import visit
except ImportError:  # numba (the extra `fast`) is not there, or not for this numpy
    from margincast.frozen.engine.products import visit

NO_SLOPE = Closed()  # of visits that ask for none
# Rows whose slope torch evaluates at once, when the loss is not compiled in: they stay in the shared cache.
SLOPE_BYTES = 4 << 20
# Below so many bytes of features a second thread costs more than it saves.
THREAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Visits:
    """In which order are rows read, and which two rows of the state does each meet?

    Rows with the same two tokens lie together, within blocks of `BLOCK` rows, so that the file is read nearly in order.
    rows: (visits,) indices into the features;  source: (visits,) position of each in the batch that was asked for
    plus, minus: (visits,) rows of the state, plus < minus;  sign: (visits,) +1 where `plus` is the chosen token
    """

    rows: NDArray[np.int64]
    source: NDArray[np.int64]
    plus: NDArray[np.int64]
    minus: NDArray[np.int64]
    sign: NDArray[np.float64]


BLOCK = 4096


# A full batch asks with the same tensors at every step; tensors are told apart by identity.
@lru_cache(maxsize=4)
def plan_visits(rows: Tensor, chosen: Tensor, rejected: Tensor) -> Visits:
    """Visits of `rows`, (batch,), for the pairs' `chosen` and `rejected` state rows, (pairs,)."""
    index = rows.numpy()
    first, second = chosen.numpy()[index], rejected.numpy()[index]
    plus, minus = np.minimum(first, second), np.maximum(first, second)
    source = np.arange(len(index))
    if len(index) and ((plus != plus[0]) | (minus != minus[0])).any():
        source = np.lexsort((index, minus, plus, index // BLOCK))
    # A pair whose two tokens are the same never moves: its sign is 0.
    sign = np.sign(second - first).astype(np.float64)
    return Visits(index[source], source, plus[source], minus[source], sign[source])


def fused_gradient(
    features: Tensor,
    visits: Visits,
    state: Tensor,
    beta: float,
    weights: Tensor,
    loss: Loss,
    margins: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The gradient of sum_i weights_i f(r_i), (T, hidden), from one pass over `features`.

    features: (pairs, hidden), float64, float32, bfloat16 or float16;  state: (T, hidden), float64 or float32
    weights: (batch,), in the order of the rows that `visits` was planned for
    margins: (batch,), where given, takes the margins that the pass met, in the same order
    start: (pairs,) margins at dW = 0, where they are not 0
    """
    numbers, stored = state.contiguous().numpy(), _bits(features)
    real, (tokens, width), count = numbers.dtype, numbers.shape, len(visits.rows)
    strength, closed = real.type(beta), np.asarray(loss.closed or NO_SLOPE, real)
    weighted = (weights.double().numpy() * beta).astype(real)[visits.source]
    passed, coefficients = np.empty((2, count), real)
    begun = None if start is None else start.numpy().astype(real)[visits.rows]
    row_bytes = width * stored.itemsize
    threads = max(1, min(torch.get_num_threads(), count * row_bytes // THREAD_BYTES))
    pulls = np.zeros((threads, tokens, width))
    block = max(4, SLOPE_BYTES // row_bytes)

    def work(thread: int) -> None:
        def call(mode: int, low: int, stop: int, given: NDArray[Any]) -> None:
            pairs = (visits.rows, visits.plus, visits.minus, visits.sign)
            visit(mode, low, stop, stored, pairs, numbers, strength, closed, passed, given, pulls[thread])

        first, last = thread * count // threads, (thread + 1) * count // threads
        if loss.closed is not None and begun is None:
            call(BOTH, first, last, weighted)
            return
        for low in range(first, last, block):
            part = slice(low, min(low + block, last))
            call(MARGINS, low, part.stop, weighted)
            if begun is not None:
                passed[part] += begun[part]
            coefficients[part] = weighted[part] * loss.slope(torch.from_numpy(passed[part])).numpy()
            call(PULL, low, part.stop, coefficients)

    _share(work, threads)
    if margins is not None:
        margins[torch.from_numpy(visits.source)] = torch.from_numpy(passed).to(margins)
    return torch.from_numpy(pulls.sum(axis=0)).to(state.dtype)


def fused_pull(features: Tensor, visits: Visits, coefficients: Tensor, tokens: int) -> Tensor:
    """sum_i coefficients_i delta_i g_i^T over the batch, (tokens, hidden), in the coefficients' dtype.

    coefficients: (batch,), float64 or float32, in the order of the rows that `visits` was planned for
    """
    stored, given = _bits(features), coefficients.numpy()[visits.source]
    count, width = len(visits.rows), features.shape[1]
    threads = max(1, min(torch.get_num_threads(), count * width * stored.itemsize // THREAD_BYTES))
    state, beta = np.zeros((tokens, width), given.dtype), given.dtype.type(1)
    slope = np.asarray(NO_SLOPE, given.dtype)
    pulls, margins = np.zeros((threads, tokens, width)), np.empty_like(given)

    def work(thread: int) -> None:
        first, last = thread * count // threads, (thread + 1) * count // threads
        pairs = (visits.rows, visits.plus, visits.minus, visits.sign)
        visit(PULL, first, last, stored, pairs, state, beta, slope, margins, given, pulls[thread])

    _share(work, threads)
    return torch.from_numpy(pulls.sum(axis=0)).to(coefficients.dtype)


def _share(work: Callable[[int], None], threads: int) -> None:
    """Run work(0) here and the rest on other threads; which thread does which rows never depends on timing."""
    running = [_pool(threads).submit(work, thread) for thread in range(1, threads)]
    work(0)
    for each in running:
        each.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="margincast")


def _bits(features: Tensor) -> NDArray[Any]:
    """The stored numbers as numpy sees them: bfloat16 as uint16 and float16 as int16, told apart by that type."""
    if features.dtype == torch.bfloat16:
        return features.view(torch.uint16).numpy()
    return (features.view(torch.int16) if features.dtype == torch.float16 else features).numpy()
