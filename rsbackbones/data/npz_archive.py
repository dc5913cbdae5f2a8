"""The arrays of ``.npz`` files: each read when it is asked for, and sample by sample."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from rsbackbones.data.grid import same_extent, to_grid
from rsbackbones.data.labelled.dataset import Array

# By the name of an array the bands of its channels; ``None``: the array NAME_bands of the file says.
Parts = Mapping[str, Sequence[str]]
# What a damaged archive raises, or the header of a damaged array.
_DAMAGE = (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error, TokenError)


class NpzArchive:
    """The arrays of a file; each is read when it is first asked for, once in every process.

    Attributes:
        facts: by array what changes with it: size and checksum, as the archive states them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, Array] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            self.facts = {m.filename.removesuffix(".npy"): (m.file_size, m.CRC) for m in members}
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"cannot read {path} as .npz: {error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array, from its header alone."""
        self._known(name)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
                old = np.lib.format.read_magic(file) == (1, 0)
                header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                return header(file)[0]
        except _DAMAGE as error:
            raise ValueError(f"cannot read {name} in {self.path}: {error}") from error

    def read(self, name: str) -> Array:
        """Return an array."""
        if name not in self._arrays:
            self._known(name)
            try:
                with np.load(self.path, allow_pickle=False) as held:
                    self._arrays[name] = held[name]
            except _DAMAGE as error:
                raise ValueError(f"cannot read {name} in {self.path}: {error}") from error
        return self._arrays[name]

    def _known(self, name: str) -> None:
        if name not in self.facts:
            raise ValueError(f"{self.path} has no array {name!r}; it has {', '.join(self.facts)}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": {}}


@dataclass(frozen=True)
class NpzReader:
    """Reads a sample by its number.

    Attributes:
        files, counts: the files, and how many places each has; ``None``: one, without an axis for it.
        starts: the number of the first sample of each file, and that after the last.
        images: by sensor its arrays, by date where there are two.
        label: the array of maps, where labels are maps.
    """

    files: tuple[NpzArchive, ...]
    starts: tuple[int, ...]
    counts: tuple[int | None, ...]
    images: Mapping[str, tuple[Parts, ...]]
    label: str | None

    def __call__(self, index: int) -> dict[str, Array]:
        number = next(n for n, (low, high) in enumerate(pairwise(self.starts)) if low <= index < high)
        file, place = self.files[number], index - self.starts[number]
        if self.counts[number] is None:
            place = -1
        sample = {}
        for sensor, sides in self.images.items():
            dates = [_joined([_at(file, array, place) for array in parts]) for parts in sides]
            sample[sensor] = dates[0] if len(dates) == 1 else np.stack(dates)
        if self.label is not None:
            label = _at(file, self.label, place)
            sample["label"] = label.reshape(label.shape[-2:])  # a channel of its own is one
        return sample


def _at(file: NpzArchive, name: str, place: int) -> Array:
    """An array's part of a place; -1: the array is of one place. A copy, as readers may change it."""
    array = file.read(name)
    return (array if place < 0 else array[place]).copy()


def _joined(parts: Sequence[Array]) -> Array:
    height, width = max(part.shape[-2:] for part in parts)
    if not all(same_extent((height, width), (part.shape[-2], part.shape[-1])) for part in parts):
        raise ValueError(
            f"arrays of one sensor are not of one extent: {[list(part.shape) for part in parts]}"
        )
    return np.concatenate([to_grid(part, height, width) for part in parts], axis=-3)
