"""Which rows does `owner/name[:split]` mean on the Hugging Face Hub?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from margincast.data.readers import Row, Source, first_line
from margincast.errors import InputError, StatedFailure, needed
from margincast.hub import cache_where_unreachable


def hub_source(data: str, revision: str | None) -> Source:
    """The source that reads one split of a Hub data set, `train` where none is named; rows count from 1.

    Nothing is fetched until the rows are asked for. Raises (then) `InputError` for a data set, split or configuration
    that is not there, `StatedFailure` when the Hub cannot be reached.
    """
    name, _, split = data.partition(":")
    split = split or "train"
    return Source(f"{name}:{split}", name, "row", lambda: _rows(name, split, revision))


def _rows(name: str, split: str, revision: str | None) -> Iterator[Row]:
    datasets = needed("datasets", f"{name}, of the Hub,")
    missing = needed("datasets.exceptions", f"{name}, of the Hub,").DatasetNotFoundError
    with cache_where_unreachable() as alone:
        try:
            table = datasets.load_dataset(name, split=split, revision=revision)
        except missing as error:
            raise InputError(
                f"{name}: neither a file or folder here nor a data set on the Hub that you can read"
            ) from error
        except ValueError as error:  # no such split, or a data set that must be told which configuration
            raise InputError(f"{name}:{split}: {first_line(error)} (a configuration cannot be given)") from error
        except (OSError, datasets.exceptions.DatasetsError) as error:
            raise StatedFailure(
                f"{name}:{split} could not be fetched from the Hub: {first_line(error)}{alone}; nor is there a file or "
                f"folder {Path(name).absolute()}"
            ) from error
    for row, columns in enumerate(table, start=1):
        yield Row(row, columns)
