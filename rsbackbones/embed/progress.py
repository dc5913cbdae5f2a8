"""The progress bar of the embedding commands, on standard error."""

import sys
from typing import Any


def progress_bar(total: int, done: int, *, enabled: bool, unit: str = "window") -> Any:
    """Return a tqdm bar that stands at ``done`` of ``total``."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=unit, disable=not enabled, file=sys.stderr)
