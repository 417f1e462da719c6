"""Does the Hugging Face Hub answer? Its library asks again and again, half a minute a file, before it says no."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

SECONDS = 3.0


def reachable() -> bool:
    """Whether the Hub answers anything at all within `SECONDS`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    answers: list[object] = []

    def ask() -> None:
        with suppress(Exception):  # which library's depends on the release; that there is no answer is the answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=SECONDS))

    asking = Thread(target=ask, daemon=True)  # looking up a name has no time limit of its own
    asking.start()
    asking.join(SECONDS)
    return bool(answers)


@contextmanager
def cache_where_unreachable() -> Iterator[str]:
    """Inside, only files of the Hub's cache are read where the Hub does not answer; yields that, for messages, or "".

    Under HF_HUB_OFFLINE nothing is asked.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield " (HF_HUB_OFFLINE is set: only its cache is read)"
    elif reachable():
        yield ""
    else:
        constants.HF_HUB_OFFLINE = True
        try:
            yield f" (the Hub cannot be reached at {constants.ENDPOINT}: only its cache is read)"
        finally:
            constants.HF_HUB_OFFLINE = False
