"""The paper's experiments: what is run at which scale, what is kept of it, and whether its claims hold."""
