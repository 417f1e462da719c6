"""Other environments than the one `make test` sets up: lists of versions, a smoke test, and what trainers allow beside."""
