"""How does each kind of result show itself? One module a kind, found by its name (`results.PRESENTERS`)."""
