"""What does a visit to the rows compute, and how is it had without a compiler? By two matrix products a block of rows.

The contract of `kernel.visit`, carried out by numpy. A block stays in the core's cache between its two products, so
that memory is read once here too; what the compiled loops save is the copy of the rows and two dozen calls a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# What a call does with its rows: dot products, slope of the loss and pull; dot products alone; pull alone.
BOTH, MARGINS, PULL = 0, 1, 2
# Sums over so many groups of four rows stay in the state's precision; longer ones are carried in float64.
FLUSH = 64
# Bytes of a block in the state's precision.
BLOCK_BYTES = 4 << 20


def _slopes(r: Any, slope: Any) -> Any:
    """`recipe.loss.Closed` at margins r, (rows,)."""
    constant, line, center, knee, target, logistic, bell, skew, growth = slope
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(r - target))
        found = np.where(r < knee, constant + line * (r - center), 0) + s * (
            logistic + (1 - s) * (bell * (r - center) + skew * s)
        )
        return found + growth * np.exp(-r) if growth else found


def visit(
    mode: int, start: int, stop: int, features: Any, pairs: Any, state: Any, beta: Any, slope: Any, margins: Any,
    coefficients: Any, pull: Any,
) -> None:  # fmt: skip
    """Visits start..stop. In: weights times beta (BOTH) or those times slopes (PULL), as `coefficients`, (visits,);
    `slope`, the numbers of a `recipe.loss.Closed`.

    Out: `margins`, (visits,); `pull`, (T, hidden) float64, is added to.
    """
    rows, plus, minus, sign = pairs
    stored = torch.from_numpy(features)
    stored = stored.view({torch.uint16: torch.bfloat16, torch.int16: torch.float16}.get(stored.dtype, stored.dtype))
    dtype = torch.from_numpy(state[:0]).dtype
    block = max(4, min(4 * FLUSH, BLOCK_BYTES // (state.shape[1] * state.itemsize)))
    for first in range(start, stop, block):
        part = slice(first, min(first + block, stop))
        tokens, ends = np.unique(np.concatenate([plus[part], minus[part]]), return_inverse=True)
        # delta_i over the tokens that the block meets, (rows, tokens).
        delta = np.zeros((len(ends) // 2, len(tokens)), state.dtype)
        each = np.arange(len(delta))
        delta[each, ends[: len(delta)]] = sign[part]
        delta[each, ends[len(delta) :]] -= sign[part]
        g = stored.index_select(0, torch.from_numpy(rows[part])).to(dtype).numpy()
        given = coefficients[part]
        if mode != PULL:
            margins[part] = beta * ((g @ state[tokens].T) * delta).sum(axis=1)  # r_i = beta delta_i^T dW g_i
        if mode == MARGINS:
            continue
        if mode == BOTH:
            given = given * _slopes(margins[part], slope)
        pull[tokens] += (given[:, None] * delta).T @ g
