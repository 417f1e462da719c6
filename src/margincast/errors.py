"""The two ways a request can fail that are not a defect of margincast, and what is not installed as one of them."""

from importlib import import_module
from typing import Any


class InputError(ValueError):
    """What was given cannot be used: bad data, a bad option, a missing file (exit status 2)."""


class StatedFailure(RuntimeError):  # noqa: N818 (a statement to the user, not a defect)
    """The request was fine but could not be carried out, for example no network (exit status 1)."""


def needed(module: str, what: str) -> Any:
    """Import `module`, which only `what` uses. Raises `StatedFailure` with what to install where it is not there."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise StatedFailure(f"{what} needs {package} ({error}): pip install {package}") from error
