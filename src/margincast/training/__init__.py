"""Real training runs, recorded as trajectories."""
