"""A cache of open files, of this process only."""

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class FileCache(Generic[T]):
    """Keeps the last ``most`` files open, by path; ``opener`` opens one. Open files are not pickled.

    40 is two sensors' files for the 16 blocks that the sampler shuffles together, and some.

    A file that a worker inherits through fork shares its position with the parent's, so every process opens
    its own.
    """

    def __init__(self, opener: Callable[[str], T], most: int = 40) -> None:
        self._opener = opener
        self._most = most
        self._process = os.getpid()
        self._open: OrderedDict[str, T] = OrderedDict()

    def open(self, path: str) -> T:
        """Return the open file of a path."""
        if self._process != os.getpid():
            self._open, self._process = OrderedDict(), os.getpid()
        if path not in self._open:
            self._open[path] = self._opener(path)
            if len(self._open) > self._most:
                self._open.popitem(last=False)  # closed when the last reader lets go of it
        self._open.move_to_end(path)
        return self._open[path]

    def __reduce__(self) -> tuple[Any, ...]:
        return FileCache, (self._opener, self._most)
