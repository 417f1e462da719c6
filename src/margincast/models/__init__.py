"""Causal language models and their unembeddings."""

from margincast.models.load import LoadedModel, load_model, untie

__all__ = ["LoadedModel", "load_model", "untie"]
