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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.files.atomic import is_temporary, write_text
from rsbackbones.files.lock import LOCK, exclusive

Array = npt.NDArray[Any]
_ENTRY = np.dtype([("row", "<u4"), ("checksum", "<u4")])
_JOB, _ROWS, _DONE = "job.json", "rows.bin", "done.bin"
_OWN = {_JOB, _ROWS, _DONE, LOCK}


class RowStore:
    """Numbered rows, each of several named arrays, written in any order. A context manager.

    The folder holds ``job.json`` (the job, and the layout of a row), ``rows.bin``, and ``done.bin``, a
    journal with the number and the checksum of every row written. A row is done when the journal has it and
    its bytes have that checksum. The store holds a lock on the folder until it closes. A store that closes
    without a row that is done leaves no folder.

    Args:
        folder: where rows are kept; ``None`` keeps them in memory.
        job: what decides the rows.
        count: how many rows there are.
        rows: those that the caller needs. Where all are done, the folder is only read, without a lock.
        layout: the arrays of a row, where they are known beforehand: disk space is then reserved at once.

    Attributes:
        done: [count] bool, which rows are there.

    Raises:
        ValueError: the folder holds other files, or rows of another job; another process writes to it, or it
            cannot be written to; the disk has no room for ``layout``.
    """

    def __init__(
        self,
        folder: Path | None,
        job: Mapping[str, Any],
        count: int,
        *,
        rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
        layout: np.dtype[Any] | None = None,
    ) -> None:
        self._folder = folder
        self._job = json.loads(json.dumps(job))
        self._layout: np.dtype[Any] | None = None
        self._memory: Array | None = None
        self._lock = ExitStack()
        self._locked = self._delete = False
        self._wanted = np.arange(count) if rows is None else np.asarray(rows, np.int64)
        self.done: npt.NDArray[np.bool_] = np.zeros(count, bool)
        if folder is not None:
            held = {p.name for p in folder.iterdir() if not is_temporary(p)} if folder.is_dir() else set()
            if folder.exists() and (not folder.is_dir() or held - _OWN):
                raise ValueError(
                    f"{folder} is needed for unfinished work and holds other files; move it away"
                )
            with warnings.catch_warnings():  # what is damaged is reported when it is locked
                warnings.simplefilter("ignore")
                self._open(folder)
            if rows is None or not self.done[self._wanted].all():
                self._begin(folder)
        if layout is not None:
            try:
                self._set_layout(layout, reserve=True)
            except BaseException:
                self.close()
                raise

    def write(self, rows: Sequence[int], arrays: Mapping[str, Array]) -> None:
        """Keep some rows, given as arrays [rows, ...] by name; on return they are on disk.

        Raises:
            ValueError: rows of another layout than those kept, or the disk does not take them.
        """
        layout = np.dtype([(n, x.dtype.newbyteorder("<"), x.shape[1:]) for n, x in arrays.items()])
        packed = np.empty(len(rows), layout)
        for name, x in arrays.items():
            packed[name] = x
        self._set_layout(layout)
        if self._memory is not None:
            self._memory[list(rows)] = packed
        elif self._folder is not None:
            try:
                self._append(self._folder, rows, packed)
            except OSError as error:
                raise ValueError(
                    f"cannot write to {self._folder}: {error.strerror or error}; rows that are done are "
                    "kept: make room and run the same again"
                ) from error
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
        self._delete = True
        self.close()

    def close(self) -> None:
        """Let other processes write to the folder; delete it where no row is done."""
        if self._folder is None or not self._locked:
            return
        if self._delete or not self.done.any():
            self._clear(self._folder)
        self._lock.close()
        self._locked = False
        with suppress(OSError):  # it holds rows, or another process has begun
            self._folder.rmdir()

    def __enter__(self) -> "RowStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, folder: Path) -> None:
        """Lock the folder, and take over what it has of this job, or make it empty."""
        self._lock.enter_context(exclusive(folder))
        self._locked = True
        try:
            if not self._open(folder):
                self._clear(folder)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, folder: Path) -> bool:
        """Find what the folder has of this job; return whether it can be added to."""
        self.done[:], self._layout = False, None
        try:
            stated = json.loads((folder / _JOB).read_text(encoding="utf-8"))
            job = dict(stated["job"])
            layout = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in stated["layout"]])
        except FileNotFoundError:  # it comes first: without it there is nothing
            return False
        except (OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{folder} is damaged and made anew: {error}", stacklevel=4)
            return False
        try:
            journal = (folder / _DONE).read_bytes()
        except FileNotFoundError:
            journal = b""
        entries = np.frombuffer(journal[: len(journal) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY)
        if job != self._job:
            if not len(entries):
                return False
            other = sorted(key for key in {*job, *self._job} if job.get(key) != self._job.get(key))
            raise ValueError(
                f"{folder} holds an unfinished run with other inputs or settings ({', '.join(other)}); "
                "delete it, or choose another output"
            )
        self._layout = layout
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
        return True

    def _clear(self, folder: Path) -> None:
        for name in (_JOB, _ROWS, _DONE):
            (folder / name).unlink(missing_ok=True)

    def _set_layout(self, layout: np.dtype[Any], *, reserve: bool = False) -> None:
        """Make the store ready for rows of a layout."""
        folder = self._folder
        if self._layout is not None:
            if layout != self._layout:
                raise ValueError(
                    f"rows of {_sizes(layout)}, and {folder or 'this store'} has rows of "
                    f"{_sizes(self._layout)}: are the images of one size?"
                )
            return
        if folder is None:
            self._layout, self._memory = layout, np.zeros(len(self.done), layout)
            return
        size = layout.itemsize * len(self._wanted)
        check_space(folder, size, "unfinished work")
        fields = [(name, layout[name].base.str, layout[name].shape) for name in layout.names or ()]
        try:
            if reserve:
                with (folder / _ROWS).open("wb") as file:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, layout.itemsize * len(self.done))
            write_text(folder / _JOB, json.dumps({"job": self._job, "layout": fields}, indent=1) + "\n")
        except OSError as error:
            raise ValueError(
                f"unfinished work needs {size} bytes in {folder}, where {shutil.disk_usage(folder).free} are "
                f"free: {error.strerror or error}"
            ) from error
        self._layout = layout

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
        whole = path.stat().st_size // self._layout.itemsize if path.exists() else 0
        if not whole:
            return np.zeros(0, self._layout)
        return np.memmap(path, self._layout, mode="r", shape=(whole,))


def check_space(folder: Path, size: int, what: str) -> None:
    """Refuse a disk without room for ``what``, before any work is done.

    Raises:
        ValueError: less than ``size`` bytes are free.
    """
    if (free := shutil.disk_usage(folder).free) < size:
        raise ValueError(f"{what} needs {size} bytes in {folder}, where {free} are free; make room")


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
