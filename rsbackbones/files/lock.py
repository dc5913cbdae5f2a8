"""A lock, so that two processes never write to the same place."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rsbackbones.files.atomic import remove_temporary

LOCK = "lock"


class LockedError(ValueError):
    """Another process holds the folder."""


@contextmanager
def exclusive(folder: Path, *, patience: float = 0) -> Iterator[None]:
    """Hold ``folder``, which is created where it does not exist, until the block or the process ends.

    The lock is the operating system's: that of a killed process is free at once. Forked processes, such as
    the workers of a data loader, do not share it. Temporary files of killed writers are deleted, see
    :func:`rsbackbones.files.atomic.atomic_path`.

    Args:
        folder: what to hold; the file ``lock`` is in it meanwhile.
        patience: how many seconds to wait for another process.

    Raises:
        LockedError: (a ``ValueError``) another process holds it.
        ValueError: it cannot be written to.
    """
    path = folder / LOCK
    lock = FileLock(path, timeout=patience)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        remove_temporary(folder)
    except Timeout as error:
        raise LockedError(
            f"another process is writing to {folder}; wait until it ends, or choose another output"
        ) from error
    except OSError as error:
        lock.release()
        raise ValueError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        # Deleted while it is held: another process that has opened it notices, and opens a new one. Windows
        # deletes no open file, and so none that another process holds.
        if sys.platform == "win32":
            lock.release()
        with suppress(OSError):
            path.unlink()
        lock.release()
