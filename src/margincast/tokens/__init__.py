"""Multi-token responses: what moves each token's reward, exactly, and which likelihoods will fall."""

from margincast.tokens.decomposition import Contributions, Factors, contributions, pull, token_rates
from margincast.tokens.displacement import Displacement, ches, displacement, response_rates
from margincast.tokens.dynamics import forecast_tokens
from margincast.tokens.features import TokenFeatures, head_of, token_features
from margincast.tokens.kernel import linearised_margins, sequence_kernel

__all__ = [
    "Contributions",
    "Displacement",
    "Factors",
    "TokenFeatures",
    "ches",
    "contributions",
    "displacement",
    "forecast_tokens",
    "head_of",
    "linearised_margins",
    "pull",
    "response_rates",
    "sequence_kernel",
    "token_features",
    "token_rates",
]
