"""What will training every weight do? Effective models of it, from frozen features and a short pilot."""
