"""Do the suspects hold what they promise, and does cleaning help? `python -m benchmarks attribution`."""

from collections.abc import Iterator

from benchmarks.harness import Row


def rows() -> Iterator[Row]:
    from benchmarks.attribution import cleaning, flips

    yield from flips.rows()
    yield from cleaning.rows()
