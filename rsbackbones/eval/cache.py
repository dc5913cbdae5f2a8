"""Rows of features, one for every sample, on disk: kept over a kill, and never believed unchecked.

A folder holds ``job.json`` (what the rows are of, and their layout), ``rows.bin`` and ``done.bin``, a journal
of which rows were written, each with its checksum. A row counts when it is in the journal and its bytes have
that checksum: what a kill or a full disk left half written is not there.

Unlike the unfinished maps of :mod:`rsbackbones.embed.unfinished`, rows come in any order: a set whose split
changes needs other samples, and finds those that are there.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.dataset import Array
from rsbackbones.files.atomic import write_text

_ENTRY = np.dtype([("sample", "<u4"), ("checksum", "<u4")])
_JOB, _ROWS, _DONE = "job.json", "rows.bin", "done.bin"


class RowStore:
    """Rows of one structured type, by sample.

    Args:
        folder: where they are kept; ``None``: in memory only.
        job: what the rows are of; a folder of another job is not used.
        samples: the number of rows.

    Attributes:
        done: [samples] bool, which rows are there.
    """

    def __init__(self, folder: Path | None, job: Mapping[str, Any], samples: int) -> None:
        self._folder = folder
        self._job = json.loads(json.dumps(job))
        self._layout: np.dtype[Any] | None = None
        self._memory: Array | None = None
        self.done: npt.NDArray[np.bool_] = np.zeros(samples, bool)
        if folder is not None:
            self._open(folder)

    def write(self, samples: Sequence[int], rows: Array) -> None:
        """Keep the rows of some samples, a structured array.

        Raises:
            ValueError: the disk does not take them.
        """
        if self._layout is not None and rows.dtype != self._layout:
            raise ValueError(
                f"features of another size than those kept in {self._folder}: the images differ in size; "
                "name one for all, size= (--size)"
            )
        if self._layout is None:
            self._layout = rows.dtype
            if self._folder is None:
                self._memory = np.zeros(len(self.done), rows.dtype)
        if self._folder is None:
            assert self._memory is not None
            self._memory[list(samples)] = rows
        else:
            try:
                self._to_disk(self._folder, samples, rows)
            except OSError as error:
                raise ValueError(
                    f"cannot keep features in {self._folder}: {error.strerror or error}"
                ) from error
        self.done[list(samples)] = True

    def read(self, samples: npt.NDArray[np.int64]) -> Array:
        """Return the rows of some samples that are done, a structured array."""
        assert self._layout is not None
        assert self.done[samples].all()
        rows = self._mapped() if self._memory is None else self._memory
        result: Array = rows[samples]
        return result

    def discard(self) -> None:
        """Delete what is kept."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, folder: Path) -> None:
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if folder.exists() and (not folder.is_dir() or held - {_JOB, _ROWS, _DONE, f"{_JOB}.tmp"}):
            raise ValueError(f"{folder} is needed for features and holds other files; move it away")
        if _JOB not in held:
            if held:  # a kill before anything was kept
                shutil.rmtree(folder)
            return
        try:
            said = json.loads((folder / _JOB).read_text(encoding="utf-8"))
            layout = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in said["layout"]])
            if said["job"] != self._job:
                raise ValueError("it is of another job")
        except (OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{folder} is damaged and made anew: {error}", stacklevel=4)
            shutil.rmtree(folder)
            return
        self._layout = layout
        self._check(folder)

    def _check(self, folder: Path) -> None:
        """Mark the rows that are whole as done."""
        if not (folder / _DONE).exists() or not (folder / _ROWS).exists():
            return
        journal = (folder / _DONE).read_bytes()
        entries = np.frombuffer(journal[: len(journal) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY)
        checksums = dict(zip(entries["sample"].tolist(), entries["checksum"].tolist(), strict=True))
        rows = self._mapped()
        damaged = 0
        for sample, checksum in checksums.items():
            if (
                sample < len(rows)
                and sample < len(self.done)
                and zlib.crc32(rows[sample].tobytes()) == checksum
            ):
                self.done[sample] = True
            else:
                damaged += 1
        if damaged:
            warnings.warn(
                f"{folder}: {damaged} of {len(checksums)} samples are damaged and are encoded again",
                stacklevel=5,
            )

    def _mapped(self) -> Array:
        assert self._folder is not None
        assert self._layout is not None
        path = self._folder / _ROWS
        whole = path.stat().st_size // self._layout.itemsize
        if not whole:
            return np.zeros(0, self._layout)
        return np.memmap(path, self._layout, mode="r", shape=(whole,))

    def _to_disk(self, folder: Path, samples: Sequence[int], rows: Array) -> None:
        if not (folder / _JOB).exists():
            folder.mkdir(parents=True, exist_ok=True)
            layout = [
                (name, rows.dtype[name].base.str, rows.dtype[name].shape) for name in rows.dtype.names or ()
            ]
            write_text(folder / _JOB, json.dumps({"job": self._job, "layout": layout}, indent=1) + "\n")
        # Rows first, and only when they are on disk the journal.
        entries = np.zeros(len(samples), _ENTRY)
        with (folder / _ROWS).open("r+b" if (folder / _ROWS).exists() else "w+b") as file:
            for place, (sample, row) in enumerate(zip(samples, rows, strict=True)):
                content = row.tobytes()
                file.seek(sample * rows.dtype.itemsize)
                file.write(content)
                entries[place] = sample, zlib.crc32(content)
            file.flush()
            os.fsync(file.fileno())
        with (folder / _DONE).open("ab") as file:
            file.truncate(
                file.tell() // _ENTRY.itemsize * _ENTRY.itemsize
            )  # a torn entry of a killed process
            file.write(entries.tobytes())
            file.flush()
            os.fsync(file.fileno())
