"""Gradient flow, the limit of small learning rates."""
