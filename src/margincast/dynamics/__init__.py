"""Frozen-backbone training, simulated exactly: the state, the flow, the optimizers."""
