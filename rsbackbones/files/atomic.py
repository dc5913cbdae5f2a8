"""Files that are either complete or not there."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r".+\.[0-9a-f]{8}\.tmp", re.DOTALL)


@contextmanager
def atomic_path(path: Path, *, within: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path for a library to write to; the file takes its name when it is on disk.

    The temporary name is this call's own (``NAME.1f2e3d4c.tmp``), so that two writers never share a file. If
    writing fails, nothing is left. A killed process leaves the temporary file; :func:`remove_temporary`
    deletes it.

    Args:
        path: where the file ends up.
        within: the folder of the temporary file, on the same disk; by default that of ``path``.
    """
    part = (within or path.parent) / f"{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_write(path: Path, *, within: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that takes its name when it is on disk, as :func:`atomic_path`."""
    with atomic_path(path, within=within) as part, part.open("xb") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text file, as :func:`atomic_path`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def is_temporary(path: Path) -> bool:
    """Tell whether a file has a temporary name of :func:`atomic_path`."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Delete what killed writers left in a folder; the caller must be the only one who writes there."""
    for path in folder.iterdir():
        if is_temporary(path):
            path.unlink(missing_ok=True)
