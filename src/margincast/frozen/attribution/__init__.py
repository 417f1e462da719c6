"""Every margin as a sum over training pairs, and how it answers to other training data."""
