"""What is margincast faster than, by how much, on this machine? `python -m benchmarks NAME [--json]`."""

import os

# As the command line does, and before torch is loaded: idle OpenMP threads that spin would slow down the kernel's own.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
