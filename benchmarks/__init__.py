"""What is margincast faster than, by how much, on this machine? `python -m benchmarks NAME [--json]`."""
