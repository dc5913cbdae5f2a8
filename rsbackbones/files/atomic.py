"""Files that are either complete or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield ``NAME.tmp``, for a library to write; it takes its name when it is on disk.

    Where writing fails, nothing of it stays. A killed process leaves ``NAME.tmp``, which the next writer
    removes.
    """
    part = path.with_name(path.name + ".tmp")
    part.unlink(missing_ok=True)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name when it is on disk, as :func:`atomic_path`."""
    with atomic_path(path) as part, part.open("wb") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text file, as :func:`atomic_path`."""
    with atomic_write(path) as file:
        file.write(text.encode())
