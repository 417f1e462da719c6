"""What can be proved about a run before it starts: distribution, lemmas, theorems, exact risk, certificates."""
