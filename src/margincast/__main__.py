"""`python -m margincast`, as `torchrun -m` and `accelerate launch -m` start it."""

from margincast.cli.main import main

main()
