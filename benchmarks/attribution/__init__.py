"""Attribution and what is built on it, one file a claim. `python -m benchmarks attribution` runs all of them."""

from collections.abc import Iterator

from benchmarks.harness import Row


def rows() -> Iterator[Row]:
    from benchmarks.attribution import chat, cleaning, counterfactuals, flips, scale, treatments, true_runs

    for claim in (counterfactuals, scale, treatments, flips, chat, cleaning, true_runs):
        yield from claim.rows()
