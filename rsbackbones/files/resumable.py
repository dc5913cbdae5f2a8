"""Half-done work that outlives its process: rows of arrays, and results.

Both are kept under the *job* that decides them (weights, data, settings, as JSON), are never used for another
job, and are checked before use: what a kill or a full disk left half written is computed again.
"""

import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.files.atomic import write_text
from rsbackbones.files.lock import exclusive

Array = npt.NDArray[Any]
_ENTRY = np.dtype([("row", "<u4"), ("checksum", "<u4")])
_JOB, _ROWS, _DONE = "job.json", "rows.bin", "done.bin"
_OWN = {_JOB, f"{_JOB}.tmp", _ROWS, _DONE, "lock"}


class RowStore:
    """Numbered rows, each of several named arrays, written in any order. A context manager.

    The folder holds ``job.json`` (the job, and the layout of a row), ``rows.bin``, and ``done.bin``, a
    journal with the number and the checksum of every row written. A row is done when the journal has it and
    its bytes have that checksum. The process that writes holds a lock on the folder until the store closes.

    Args:
        folder: where rows are kept; ``None`` keeps them in memory.
        job: what decides the rows.
        count: how many rows there are.
        layout: the arrays of a row, where they are known beforehand: the folder is then locked, and disk
            space reserved, at once instead of at the first write.

    Attributes:
        done: [count] bool, which rows are there.

    Raises:
        ValueError: the folder holds other files or another job, another process writes to it, or the disk has
            no room for ``layout``.
    """

    def __init__(
        self, folder: Path | None, job: Mapping[str, Any], count: int, *, layout: np.dtype[Any] | None = None
    ) -> None:
        self._folder = folder
        self._job = json.loads(json.dumps(job))
        self._layout: np.dtype[Any] | None = None
        self._memory: Array | None = None
        self._lock = ExitStack()
        self._locked = False
        self.done: npt.NDArray[np.bool_] = np.zeros(count, bool)
        if folder is not None:
            held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            if folder.exists() and (not folder.is_dir() or held - _OWN):
                raise ValueError(
                    f"{folder} is needed for unfinished work and holds other files; move it away"
                )
            self._open(folder)
        if layout is not None:
            self._begin(layout, reserve=True)

    def write(self, rows: Sequence[int], arrays: Mapping[str, Array]) -> None:
        """Keep some rows, given as arrays [rows, ...] by name; on return they are on disk.

        Raises:
            ValueError: rows of another layout than those kept, another process writes to the folder, or the
                disk does not take them.
        """
        layout = np.dtype([(n, x.dtype.newbyteorder("<"), x.shape[1:]) for n, x in arrays.items()])
        packed = np.empty(len(rows), layout)
        for name, x in arrays.items():
            packed[name] = x
        self._begin(layout)
        if self._memory is not None:
            self._memory[list(rows)] = packed
        elif self._folder is not None:
            try:
                self._append(self._folder, rows, packed)
            except OSError as error:
                raise ValueError(f"cannot write to {self._folder}: {error.strerror or error}") from error
        self.done[list(rows)] = True

    def read(self, rows: npt.NDArray[np.int64] | None = None) -> dict[str, Array]:
        """Return some rows, which are done, as arrays [rows, ...] by name; by default all, read-only.

        Arrays of all rows are mapped from the disk: use them before :meth:`discard`.
        """
        assert self._layout is not None
        assert self.done[slice(None) if rows is None else rows].all()
        held = self._mapped() if self._memory is None else self._memory
        packed = held if rows is None else held[rows]
        return {name: packed[name] for name in self._layout.names or ()}

    def discard(self) -> None:
        """Delete the folder."""
        self.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Let other processes write to the folder."""
        self._lock.close()
        self._locked = False

    def __enter__(self) -> "RowStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, folder: Path) -> None:
        """Take over what the folder has of this job: without ``job.json``, which comes first, nothing."""
        try:
            stated = json.loads((folder / _JOB).read_text(encoding="utf-8"))
            job = stated["job"]
            layout = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in stated["layout"]])
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{folder} is damaged and made anew: {error}", stacklevel=4)
            (folder / _JOB).unlink()
            return
        if job != self._job:
            raise ValueError(
                f"{folder} holds an unfinished run with other inputs or settings; delete it, or choose "
                "another output"
            )
        self._layout = layout
        if not (folder / _DONE).exists() or not (folder / _ROWS).exists():
            return
        journal = (folder / _DONE).read_bytes()
        entries = np.frombuffer(journal[: len(journal) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY)
        checksums = dict(zip(entries["row"].tolist(), entries["checksum"].tolist(), strict=True))
        rows = self._mapped()
        for row, checksum in checksums.items():
            if row < min(len(rows), len(self.done)):
                self.done[row] = zlib.crc32(rows[row].tobytes()) == checksum
        if damaged := len(checksums) - int(self.done.sum()):
            warnings.warn(
                f"{folder}: {damaged} of {len(checksums)} rows are damaged and are computed again",
                stacklevel=4,
            )

    def _begin(self, layout: np.dtype[Any], *, reserve: bool = False) -> None:
        """Make the store ready for rows of a layout."""
        folder = self._folder
        if folder is not None and not self._locked:
            self._lock.enter_context(exclusive(folder))
            self._locked = True
            if self._layout is None:
                self._open(folder)  # another process may have begun the job meanwhile
        if self._layout is not None:
            if layout != self._layout:
                raise ValueError(
                    f"rows of {_sizes(layout)}, and {folder or 'this store'} has rows of "
                    f"{_sizes(self._layout)}: are the images of one size?"
                )
            return
        self._layout = layout
        if folder is None:
            self._memory = np.zeros(len(self.done), layout)
            return
        for name in (_ROWS, _DONE):  # of a process that was killed before it wrote job.json
            (folder / name).unlink(missing_ok=True)
        if reserve:
            self._reserve(folder / _ROWS, layout.itemsize * len(self.done))
        fields = [(name, layout[name].base.str, layout[name].shape) for name in layout.names or ()]
        write_text(folder / _JOB, json.dumps({"job": self._job, "layout": fields}, indent=1) + "\n")

    def _reserve(self, path: Path, size: int) -> None:
        """Take disk space, so that a disk without room is noticed before any work is done."""
        try:
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            self.discard()
            place = path.parent.parent
            raise ValueError(
                f"unfinished work needs {size} bytes in {place}, where {shutil.disk_usage(place).free} are "
                f"free: {error.strerror}"
            ) from error

    def _append(self, folder: Path, rows: Sequence[int], packed: Array) -> None:
        # The journal follows only when the rows are on disk.
        entries = np.zeros(len(rows), _ENTRY)
        with (folder / _ROWS).open("r+b" if (folder / _ROWS).exists() else "w+b") as file:
            for place, (row, values) in enumerate(zip(rows, packed, strict=True)):
                content = values.tobytes()
                file.seek(row * packed.dtype.itemsize)
                file.write(content)
                entries[place] = row, zlib.crc32(content)
            file.flush()
            os.fsync(file.fileno())
        with (folder / _DONE).open("ab") as file:
            # An entry that a killed process left half written.
            file.truncate(file.tell() // _ENTRY.itemsize * _ENTRY.itemsize)
            file.write(entries.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _mapped(self) -> Array:
        assert self._folder is not None
        assert self._layout is not None
        path = self._folder / _ROWS
        whole = path.stat().st_size // self._layout.itemsize
        if not whole:
            return np.zeros(0, self._layout)
        return np.memmap(path, self._layout, mode="r", shape=(whole,))


def _sizes(layout: np.dtype[Any]) -> str:
    return ", ".join(f"{name} {list(layout[name].shape)}" for name in layout.names or ())


def cached_result(
    folder: Path, job: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the result of a job from its file in ``folder``, or compute it and write the file.

    Args:
        folder: of the files, one for each result; it is created where it does not exist. A damaged file is
            reported and written again.
        job: what decides the result. It is part of what is returned.
        compute: returns the rest, as JSON takes it.
    """
    stated = json.loads(json.dumps(job))
    path = folder / f"{hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:16]}.json"
    if path.exists():
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if {name: result[name] for name in stated} != stated:
                raise ValueError("it is of another job")
            return dict(result)
        except (OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{path} is damaged and made anew: {error}", stacklevel=2)
    # As it will be read: a first run and a later one return the same, tuples or not.
    text = json.dumps({**stated, **compute()})
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")
    result = json.loads(text)
    return dict(result)
