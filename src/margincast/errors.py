"""The two ways a request can fail that are not a defect of margincast."""


class InputError(ValueError):
    """What was given cannot be used: bad data, a bad option, a missing file (exit status 2)."""


class StatedFailure(RuntimeError):  # noqa: N818 (a statement to the user, not a defect)
    """The request was fine but could not be carried out, for example no network (exit status 1)."""
