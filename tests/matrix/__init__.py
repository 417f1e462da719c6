"""Other environments than the one `make test` sets up: lists of versions, a smoke test, what trainers allow beside."""
