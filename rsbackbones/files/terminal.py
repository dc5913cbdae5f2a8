"""What commands print. Names and notes come from files of others, and must not steer the terminal."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# Control characters but line feed and tab; what turns the direction of a text; parts of file names that are
# not UTF-8. A progress bar begins with a carriage return, or ends with one.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    "|(?!^)\r(?!$)"
)


def escape_controls(text: str) -> str:
    r"""Return a text with control characters written out: ``\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class _PlainStream:
    """A text stream that is written to by :func:`escape_controls`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(escape_controls(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def plain_output() -> Iterator[None]:
    """Escape the control characters of everything that is printed inside, on both standard streams."""
    before: tuple[Any, Any] = sys.stdout, sys.stderr
    plain: tuple[Any, Any] = _PlainStream(before[0]), _PlainStream(before[1])
    sys.stdout, sys.stderr = plain
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
