"""Preference pairs from wherever they are: packaged, persona files, local files, the Hub."""

from margincast.data.load import load_pairs

__all__ = ["load_pairs"]
