"""From pairs and a model to frozen features and reference log-probabilities."""

from margincast.features.extract import extract_features, features_of
from margincast.features.tokenize import Encoded, Encoding, encode

__all__ = ["Encoded", "Encoding", "encode", "extract_features", "features_of"]
