"""The flow of margins in the N x N kernel (Eq. 8): scipy's RK45, and neural_tangents where it is installed."""

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


def neural_tangents_flow(
    features: NDArray[np.float64], sign: NDArray[np.float64], beta: float, time: float
) -> NDArray[np.float64]:
    """Margins at `time`, (pairs,). Raises `ImportError` where neural_tangents is not installed."""
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt

    jax.config.update("jax_enable_x64", True)
    C = jnp.asarray(beta**2 * kernel(features, sign))
    predict = nt.predict.gradient_descent(lambda fx, _: jnp.mean(jax.nn.softplus(-fx)), C, jnp.zeros((len(C), 1)))
    return np.asarray(predict(time, jnp.zeros((len(C), 1))))[:, 0]
