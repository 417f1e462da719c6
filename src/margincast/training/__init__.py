"""Real training runs, recorded as trajectories."""

from margincast.training.run import TrainingSettings, train_model

__all__ = ["TrainingSettings", "train_model"]
