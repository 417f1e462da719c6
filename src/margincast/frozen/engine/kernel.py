"""What do the compiled loops over the features do? Dot products, the slope, and the pull, four rows at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from margincast.frozen.engine.products import BOTH, FLUSH, MARGINS, PULL


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
def _add(g0: Any, g1: Any, g2: Any, g3: Any, c: Any, out: Any) -> None:
    """out, (hidden,) += c, (4,), times four rows."""
    a, b, e, f = c[0], c[1], c[2], c[3]
    for k in range(len(out)):
        out[k] += a * _widen(g0[k]) + b * _widen(g1[k]) + e * _widen(g2[k]) + f * _widen(g3[k])


@_compiled  # type: ignore[untyped-decorator]
def _slope(r: Any, slope: Any) -> Any:
    """`recipe.loss.Closed` at the margin r."""
    one = slope.dtype.type(1)
    away = r - slope[2]
    s = one / (one + np.exp(r - slope[4]))
    found = s * (slope[5] + (one - s) * (slope[6] * away + slope[7] * s))
    if r < slope[3]:
        found += slope[0] + slope[1] * away
    if slope[8] != 0:
        found += slope[8] * np.exp(-r)
    return found


@_compiled  # type: ignore[untyped-decorator]
def visit(
    mode: int, start: int, stop: int, features: Any, pairs: Any, state: Any, beta: float, slope: Any, margins: Any,
    coefficients: Any, pull: Any,
) -> None:  # fmt: skip
    """Visits start..stop. In: weights times beta (BOTH) or those times slopes (PULL), as `coefficients`, (visits,);
    `slope`, the numbers of a `recipe.loss.Closed`.

    Out: `margins`, (visits,); `pull`, (T, hidden) float64, is added to.
    """
    rows, plus, minus, sign = pairs
    width = state.shape[1]
    real = state.dtype.type
    towards = np.empty(width, state.dtype)  # delta^T dW for the two tokens of the rows at hand
    local = np.zeros(width, state.dtype)
    dots = np.zeros(4, state.dtype)
    scale = np.zeros(4, state.dtype)
    groups = 0
    at = start
    while at < stop:
        first, second = plus[at], minus[at]
        if at == start or first != plus[at - 1] or second != minus[at - 1]:
            towards[:] = state[first] - state[second]
        many = 1
        while many < 4 and at + many < stop and plus[at + many] == first and minus[at + many] == second:
            many += 1
        # A short group repeats its last row, with coefficient 0.
        g0, g1 = features[rows[at]], features[rows[at + min(1, many - 1)]]
        g2, g3 = features[rows[at + min(2, many - 1)]], features[rows[at + min(3, many - 1)]]
        if mode != PULL:
            _dot(g0, g1, g2, g3, towards, dots)
        for q in range(many):
            toward = real(sign[at + q])
            scale[q] = toward * coefficients[at + q]
            if mode != PULL:
                margins[at + q] = beta * toward * dots[q]  # r_i = beta delta_i^T dW g_i
            if mode == BOTH:
                scale[q] *= _slope(margins[at + q], slope)
        scale[many:] = 0
        at += many
        if mode == MARGINS:
            continue
        _add(g0, g1, g2, g3, scale, local)
        groups += 1
        if at == stop or groups % FLUSH == 0 or plus[at] != first or minus[at] != second:
            pull[first] += local
            pull[second] -= local
            local[:] = 0
