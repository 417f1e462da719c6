"""The structure of embeddings: cosines between concepts, estimates of the preference distribution, topics."""

from margincast.structure.inspect import Structure, inspect_features

__all__ = ["Structure", "inspect_features"]
