"""A forward pass over pairs: tokens, packed prefix tries, log-probabilities and features of responses."""
