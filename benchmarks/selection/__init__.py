"""Does the forecast rank rules as true runs do (`truth`)? How long do 100,000 pairs take (`scale`, run by `rows`)?"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Row


def rows() -> Iterator[Row]:
    from benchmarks.selection.scale import rows as of_scale

    yield from of_scale()
