"""Real training runs, recorded as trajectories."""

from margincast.training.callback import MarginCallback
from margincast.training.run import train_model
from margincast.training.settings import TrainingSettings

__all__ = ["MarginCallback", "TrainingSettings", "train_model"]
