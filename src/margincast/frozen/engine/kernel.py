"""What do the compiled loops over the features do? Dot products, the slope, and the pull, four rows at once.

Several states (the settings of a sweep) are met in tiles of four rows by four states, which stay in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from margincast.frozen.engine.products import BOTH, FLUSH, MARGINS, PULL

# States lie this many numbers further apart than their width: rows of 4,096 numbers would share the same cache sets.
APART = 80


def _by_type(typing: Any, value: Any) -> Any:
    def bfloat16(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(wide.type, 16)), ir.FloatType())

    def float16(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    def unchanged(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    if value == types.uint16:
        return types.float32(value), bfloat16
    if value == types.int16:
        return types.float32(value), float16
    return value(value), unchanged


# A stored number as the compiled code calculates with it: 16 bits become float32, exactly.
_widen: Any = intrinsic(_by_type)

# Sums may be reordered and fused, so that they run in vectors; NaN and infinities keep their meaning.
_compiled: Any = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@_compiled  # type: ignore[untyped-decorator]
def _dot(g0: Any, g1: Any, g2: Any, g3: Any, t: Any, out: Any) -> None:
    """out, (4,): four rows times one state."""
    zero = t.dtype.type(0)
    a = b = c = d = zero
    for k in range(len(t)):
        x = t[k]
        a += _widen(g0[k]) * x
        b += _widen(g1[k]) * x
        c += _widen(g2[k]) * x
        d += _widen(g3[k]) * x
    out[0], out[1], out[2], out[3] = a, b, c, d


@_compiled  # type: ignore[untyped-decorator]
def _dot_four(g0: Any, g1: Any, g2: Any, g3: Any, t: Any, u: Any, v: Any, w: Any, out: Any) -> None:
    """out, (4, 4): four rows times four states."""
    zero = t.dtype.type(0)
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = zero
    for k in range(len(t)):
        x0, x1, x2, x3 = _widen(g0[k]), _widen(g1[k]), _widen(g2[k]), _widen(g3[k])
        p, q, r, s = t[k], u[k], v[k], w[k]
        a0 += x0 * p
        a1 += x0 * q
        a2 += x0 * r
        a3 += x0 * s
        b0 += x1 * p
        b1 += x1 * q
        b2 += x1 * r
        b3 += x1 * s
        c0 += x2 * p
        c1 += x2 * q
        c2 += x2 * r
        c3 += x2 * s
        d0 += x3 * p
        d1 += x3 * q
        d2 += x3 * r
        d3 += x3 * s
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = a0, a1, a2, a3
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = b0, b1, b2, b3
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = c0, c1, c2, c3
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = d0, d1, d2, d3


@_compiled  # type: ignore[untyped-decorator]
def _add(g0: Any, g1: Any, g2: Any, g3: Any, c: Any, out: Any) -> None:
    """out, (hidden,) += c, (4,), times four rows."""
    a, b, e, f = c[0], c[1], c[2], c[3]
    for k in range(len(out)):
        out[k] += a * _widen(g0[k]) + b * _widen(g1[k]) + e * _widen(g2[k]) + f * _widen(g3[k])


@_compiled  # type: ignore[untyped-decorator]
def _add_four(g0: Any, g1: Any, g2: Any, g3: Any, c: Any, o0: Any, o1: Any, o2: Any, o3: Any) -> None:
    """`_add` for four states at once; c: (4, 4), rows by states."""
    # In variables of their own, so that they stay in registers: the compiler cannot know that `out` is not `c`.
    a0, a1, a2, a3 = c[0, 0], c[0, 1], c[0, 2], c[0, 3]
    b0, b1, b2, b3 = c[1, 0], c[1, 1], c[1, 2], c[1, 3]
    d0, d1, d2, d3 = c[2, 0], c[2, 1], c[2, 2], c[2, 3]
    e0, e1, e2, e3 = c[3, 0], c[3, 1], c[3, 2], c[3, 3]
    for k in range(len(o0)):
        x0, x1, x2, x3 = _widen(g0[k]), _widen(g1[k]), _widen(g2[k]), _widen(g3[k])
        o0[k] += a0 * x0 + b0 * x1 + d0 * x2 + e0 * x3
        o1[k] += a1 * x0 + b1 * x1 + d1 * x2 + e1 * x3
        o2[k] += a2 * x0 + b2 * x1 + d2 * x2 + e2 * x3
        o3[k] += a3 * x0 + b3 * x1 + d3 * x2 + e3 * x3


@_compiled  # type: ignore[untyped-decorator]
def visit(
    mode: int, start: int, stop: int, features: Any, pairs: Any, state: Any, beta: Any, margins: Any,
    coefficients: Any, pull: Any,
) -> None:  # fmt: skip
    """Visits start..stop. In: weights times beta (BOTH) or those times slopes (PULL), as `coefficients`, (visits, S).

    Out: `margins`, (visits, S); `pull`, (S, T, hidden) float64, is added to.
    """
    rows, plus, minus, sign = pairs
    settings, _, width = state.shape
    real = state.dtype.type
    towards = np.empty((settings, width + APART), state.dtype)  # delta^T dW for the two tokens of the rows at hand
    local = np.zeros((settings, width + APART), state.dtype)
    dots = np.zeros((4, settings), state.dtype)
    scale = np.zeros((4, settings), state.dtype)
    tiled = settings - settings % 4
    groups = 0
    at = start
    while at < stop:
        first, second = plus[at], minus[at]
        if at == start or first != plus[at - 1] or second != minus[at - 1]:
            towards[:, :width] = state[:, first] - state[:, second]
        many = 1
        while many < 4 and at + many < stop and plus[at + many] == first and minus[at + many] == second:
            many += 1
        # A short group repeats its last row, with coefficient 0.
        g0, g1 = features[rows[at]], features[rows[at + min(1, many - 1)]]
        g2, g3 = features[rows[at + min(2, many - 1)]], features[rows[at + min(3, many - 1)]]
        if mode != PULL:
            for s in range(0, tiled, 4):
                t, u, v, w = towards[s], towards[s + 1], towards[s + 2], towards[s + 3]
                _dot_four(g0, g1, g2, g3, t[:width], u[:width], v[:width], w[:width], dots[:, s : s + 4])
            for s in range(tiled, settings):
                _dot(g0, g1, g2, g3, towards[s, :width], dots[:, s])
        for q in range(many):
            toward = real(sign[at + q])
            for s in range(settings):
                scale[q, s] = toward * coefficients[at + q, s]
                if mode != PULL:
                    margins[at + q, s] = beta[s] * toward * dots[q, s]  # r_i = beta delta_i^T dW g_i
                if mode == BOTH:
                    scale[q, s] /= -(real(1) + np.exp(margins[at + q, s]))  # f' of DPO: -sigma(-r)
        scale[many:] = 0
        at += many
        if mode == MARGINS:
            continue
        for s in range(0, tiled, 4):
            t, u, v, w = local[s], local[s + 1], local[s + 2], local[s + 3]
            _add_four(g0, g1, g2, g3, scale[:, s : s + 4], t[:width], u[:width], v[:width], w[:width])
        for s in range(tiled, settings):
            _add(g0, g1, g2, g3, scale[:, s], local[s, :width])
        groups += 1
        if at == stop or groups % FLUSH == 0 or plus[at] != first or minus[at] != second:
            pull[:, first] += local[:, :width]
            pull[:, second] -= local[:, :width]
            local[:] = 0
