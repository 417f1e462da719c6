"""What the product computes on fixed seeds, kept as numbers: a change that means to change none of them shows it here.

    python -m tests.golden [CASE ...] [--tier fast|slow] [--exact] [--write]

runs the cases as a user would, through the command line, and compares with `values/`. `--exact` compares to the last
bit, which holds on one machine; without it numbers may differ by rounding. `--write` replaces the values: only with a
line in the CHANGELOG that says which fault was mended.
"""
