"""One training step after another on T x d numbers: the state, the kernels, the spaces it moves in."""
