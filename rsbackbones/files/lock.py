"""A lock, so that two processes never write to the same place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is created where it does not exist, until the block or the process ends.

    Raises:
        ValueError: another process holds it, or it cannot be written to.
    """
    lock = FileLock(folder / "lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another process is writing to {folder}; wait until it ends, or choose another output"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
