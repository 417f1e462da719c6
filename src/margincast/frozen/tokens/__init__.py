"""Multi-token responses: what moves each token's reward, exactly, and which likelihoods will fall."""

from margincast.features.positions import TokenFeatures, head_of, token_features
from margincast.frozen.tokens.decomposition import Contributions, Factors, contributions, pull, token_rates
from margincast.frozen.tokens.displacement import (
    Displacement,
    Displacements,
    ches,
    displacement,
    displacements,
    response_rates,
)
from margincast.frozen.tokens.forecast import forecast_tokens
from margincast.frozen.tokens.kernel import linearised_margins, sequence_kernel
from margincast.frozen.tokens.pushes import Decomposition, decompose

__all__ = [
    "Contributions",
    "Decomposition",
    "Displacement",
    "Displacements",
    "Factors",
    "TokenFeatures",
    "ches",
    "contributions",
    "decompose",
    "displacement",
    "displacements",
    "forecast_tokens",
    "head_of",
    "linearised_margins",
    "pull",
    "response_rates",
    "sequence_kernel",
    "token_features",
    "token_rates",
]
