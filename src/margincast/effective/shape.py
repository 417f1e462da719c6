"""Which held-out pairs gain more than others, before any training? Spectral shapes of centred frozen features.

With g^ a feature less the mean of the training features, and the kernel of the signed pairs

    K_ij = (delta_i . delta_j)(g^_i . g^_j) = U diag(lambda) U^T,

    h_j(alpha) = K_jN U diag((lambda + ridge lambda_1)^-alpha) U^T 1

runs from the margins of one step of gradient descent (alpha = 0) to those of least squares (alpha = 1), as the path of
training does. Centring takes out what all prompts share, which `offset` describes. Any number of response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from margincast.dynamics.state import TokenSpace
from margincast.errors import InputError

LARGEST = 4000  # pairs whose kernel is diagonalised: 128 MB, half a minute


def spectral_shape(train: TokenSpace, heldout: TokenSpace, alpha: float, ridge: float) -> Tensor:
    """h(alpha) of the held-out pairs, (pairs,) float64, up to scale.

    ridge: relative to the largest eigenvalue

    Raises `InputError` for more training pairs than a kernel of them can be diagonalised.
    """
    if len(train) > LARGEST:
        raise InputError(f"the shape of {len(train)} training pairs needs their kernel; give at most {LARGEST} of them")
    mean = train.features.double().mean(0)
    centred, against = (
        TokenSpace(space.features.double() - mean, space.chosen, space.rejected, space.beta, space.tokens)
        for space in (train, heldout)
    )
    values, vectors = torch.linalg.eigh(centred.kernel(centred))
    values = values.clamp_min(0.0)
    weights = (values + ridge * values[-1]) ** -alpha
    shape: Tensor = against.kernel(centred) @ (vectors @ (weights * vectors.sum(0)))
    return shape
