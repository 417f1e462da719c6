"""Multi-token responses: what moves each token's reward, exactly, and which likelihoods will fall."""

from margincast.tokens.decomposition import Factors, contributions, pull, token_rates
from margincast.tokens.displacement import ches, response_rates
from margincast.tokens.dynamics import forecast_tokens
from margincast.tokens.features import TokenFeatures, head_of, token_features

__all__ = [
    "Factors",
    "TokenFeatures",
    "ches",
    "contributions",
    "forecast_tokens",
    "head_of",
    "pull",
    "response_rates",
    "token_features",
    "token_rates",
]
