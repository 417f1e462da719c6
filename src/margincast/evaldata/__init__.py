"""Texts and pairs that a run is not trained on: read, put into tokens, and what a model says of them."""

from margincast.evaldata.read import EvalData, EvalSet, EvalText, load_eval_data

__all__ = ["EvalData", "EvalSet", "EvalText", "load_eval_data"]
