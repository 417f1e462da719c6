"""From pairs and a model to frozen features and reference log-probabilities."""

from margincast.features.extract import extract_features, features_of

__all__ = ["extract_features", "features_of"]
