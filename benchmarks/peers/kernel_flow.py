"""The flow of margins in the N x N kernel (Eq. 8): scipy's RK45."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.special import expit


def kernel(features: NDArray[np.float64], sign: NDArray[np.float64]) -> NDArray[np.float64]:
    """C for two response tokens, (pairs, pairs): 2 s_i s_j g_i^T g_j."""
    signed = sign[:, None] * features
    return 2.0 * signed @ signed.T


def scipy_flow(
    features: NDArray[np.float64], sign: NDArray[np.float64], beta: float, time: float, rtol: float
) -> NDArray[np.float64]:
    """Margins at `time`, (pairs,)."""
    C = kernel(features, sign)
    scale = beta**2 / len(C)
    solution = solve_ivp(lambda _, r: scale * (C @ expit(-r)), (0.0, time), np.zeros(len(C)), rtol=rtol, atol=1e-9)
    return np.asarray(solution.y[:, -1])
