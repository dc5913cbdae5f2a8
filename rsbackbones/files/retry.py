"""Another try after a pause, where a server may answer the next time."""

import time
from collections.abc import Callable
from typing import TypeVar

# So often something is tried; the pause after the first try, which doubles.
TRIES, PAUSE_S = 4, 0.5
# What a busy server answers.
BUSY = (429, 500, 502, 503, 504)

_T = TypeVar("_T")


def retried(work: Callable[[], _T], passing: Callable[[Exception], bool]) -> _T:
    """Return what ``work`` returns. Errors that are ``passing`` are raised after the last try alone."""
    for attempt in range(TRIES - 1):
        try:
            return work()
        except Exception as error:
            if not passing(error):
                raise
        time.sleep(PAUSE_S * 2**attempt)
    return work()
