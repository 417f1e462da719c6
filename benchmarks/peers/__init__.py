"""Other ways of computing the same numbers, as we run them."""
