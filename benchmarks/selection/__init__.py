"""Does the forecast rank rules as true runs do (`truth`), and are 100,000 pairs chosen from in time (`scale`, in `rows`)?"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Row


def rows() -> Iterator[Row]:
    from benchmarks.selection.scale import rows as of_scale

    yield from of_scale()
