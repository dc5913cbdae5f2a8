"""Progress bars, on standard error."""

import sys
from collections.abc import Callable
from typing import Any


def progress_bar(total: int, done: int, *, enabled: bool, unit: str = "window") -> Any:
    """Return a tqdm bar that stands at ``done`` of ``total``."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=unit, disable=not enabled, file=sys.stderr)


def progress_message(bar: Any, what: str) -> Callable[[int, int], None]:
    """Return a callback (done, total) that shows beside a bar how much of one of its units is done."""
    return lambda done, total: bar.set_postfix_str(f"{what} {done}/{total}")
