"""The one reader of arrays in ``.npz`` files, for pretraining data and labelled data sets alike."""

import math
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.files.bounds import check_zip

Array = npt.NDArray[Any]
# What a damaged archive raises, or the header of a damaged array.
_DAMAGE = (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error, TokenError)


class NpzArchive:
    """The arrays of a file. Each is read at its first use, once in every process.

    Attributes:
        facts: size and checksum of each array, as the archive states them; they change with its content.

    Raises:
        ValueError: the file cannot be read as ``.npz``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, Array] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            check_zip(path, members)
            self.facts = {m.filename.removesuffix(".npy"): (m.file_size, m.CRC) for m in members}
        except (OSError, NotImplementedError, zipfile.BadZipFile) as error:
            raise ValueError(f"cannot read {path} as .npz: {error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array, from its header alone.

        Raises:
            ValueError: there is no such array, or it is damaged.
        """
        self._known(name)
        try:
            return self._header(name)[0]
        except _DAMAGE as error:
            raise ValueError(f"cannot read {name} in {self.path}: {error}") from error

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Return the shape and type of an array, and the bytes of its header."""
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            old = np.lib.format.read_magic(file) == (1, 0)
            header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            shape, _, kind = header(file)
            return shape, kind, file.tell()

    def _check_size(self, name: str) -> None:
        """Refuse an array whose header states another size than the archive: numpy reserves it at once."""
        shape, kind, start = self._header(name)
        stated, held = math.prod(shape) * kind.itemsize, self.facts[name][0] - start
        if stated != held and not kind.hasobject:
            raise ValueError(f"its header states {list(shape)} of {kind}, {stated} bytes, and it has {held}")

    def read(self, name: str) -> Array:
        """Return an array.

        Raises:
            ValueError: as :meth:`shape`.
        """
        if name not in self._arrays:
            self._known(name)
            try:
                self._check_size(name)
                with np.load(self.path, allow_pickle=False) as arrays:
                    self._arrays[name] = arrays[name]
            except _DAMAGE as error:
                raise ValueError(f"cannot read {name} in {self.path}: {error}") from error
        return self._arrays[name]

    def _known(self, name: str) -> None:
        if name not in self.facts:
            raise ValueError(f"{self.path} has no array {name!r}; it has {', '.join(self.facts)}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": {}}
