"""Real training runs, recorded as trajectories."""

from margincast.training.callback import MarginCallback
from margincast.training.run import TrainingSettings, train_model

__all__ = ["MarginCallback", "TrainingSettings", "train_model"]
