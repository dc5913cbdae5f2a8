"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name when it is on disk; where writing fails, nothing of it stays.

    A killed process leaves ``NAME.tmp``, which the next writer of the name overwrites.
    """
    part = path.with_name(path.name + ".tmp")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file so."""
    with atomic_write(path) as file:
        file.write(text.encode())
