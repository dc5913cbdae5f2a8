"""Zarr (version 2) groups in uncompressed zips: what shards of packed data and stored series are made of.

Arrays with dates in front are stored in chunks of one date, so that single dates are read alone. Every read
is checked by the zip's CRC.
"""

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rsbackbones.files.atomic import atomic_write
from rsbackbones.typed_fields import show

Array = npt.NDArray[Any]
# Level 3 of zstd on shuffled bits: three times smaller than real L2A, decoded at about 1.5 GB/s.
_CODEC: dict[str, Any] = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 2, "blocksize": 0}
# Every file of a zip carries a date; with a fixed one, equal contents are equal bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
# What reading a damaged group raises.
DAMAGE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, EOFError,
          struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip


class ZarrZipWriter:
    """Writes a group; the file takes its name only when the ``with`` block ends without an error."""

    def __init__(self, path: Path) -> None:
        self._opening = atomic_write(path)

    def array(self, name: str, values: Array) -> None:
        """Write an array: one with three or more axes in chunks of one index of the first, others whole."""
        codec = _codec(_CODEC)
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        by_date = values.ndim > 2
        chunks = (1, *values.shape[1:]) if by_date else values.shape
        header = {
            "zarr_format": 2, "shape": values.shape, "chunks": chunks, "dtype": values.dtype.str,
            "compressor": _CODEC, "fill_value": None, "order": "C", "filters": None,
        }  # fmt: skip
        self._file(f"{name}/.zarray", _json(header))
        for i, chunk in enumerate(values if by_date else [values]):
            self._file(_chunk_name(name, i, values.ndim), codec.encode(chunk))

    def attributes(self, values: Mapping[str, object]) -> None:
        """Write the attributes of the group, once."""
        self._file(".zgroup", _json({"zarr_format": 2}))
        self._file(".zattrs", _json(values))

    def _file(self, name: str, content: bytes) -> None:
        self._zip.writestr(zipfile.ZipInfo(name, _ZIP_DATE), content)

    def __enter__(self) -> Self:
        self._zip = zipfile.ZipFile(self._opening.__enter__(), "w")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self._zip.close()
            except OSError as failure:
                self._opening.__exit__(type(failure), failure, failure.__traceback__)
                raise
        else:
            self._zip.fp = None  # nothing more is written to a file that is thrown away
        self._opening.__exit__(kind, error, trace)


class ZarrZip:
    """An open group, and its ``attributes``."""

    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path)
        if packed := [info.filename for info in self._zip.infolist() if info.compress_type]:
            raise ValueError(f"{packed[0]} is compressed by the zip, which rsbackbones never does")
        self.attributes: dict[str, Any] = json.loads(self._zip.read(".zattrs"))

    def __contains__(self, name: str) -> bool:
        return f"{name}/.zarray" in self._zip.NameToInfo

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        return tuple(self._header(name)["shape"])

    def read(self, name: str, date: int | None = None) -> Array:
        """Read an array, or one date of it. A chunk that is missing is a KeyError, not zeros."""
        header = self._header(name)
        shape = header["shape"]
        by_date = len(shape) > 2
        kind, codec = np.dtype(header["dtype"]), _codec(header["compressor"])
        count, rest = (shape[0], shape[1:]) if by_date else (1, shape)
        chunks = [
            _decode(codec, self._zip.read(_chunk_name(name, k, len(shape))), kind, rest)
            for k in (range(count) if date is None else [date])
        ]
        return np.stack(chunks) if by_date and date is None else chunks[0]

    def _header(self, name: str) -> Mapping[str, Any]:
        header: Mapping[str, Any] = json.loads(self._zip.read(f"{name}/.zarray"))
        return header


def _chunk_name(name: str, index: int, axes: int) -> str:
    return f"{name}/{'.'.join([str(index), *['0'] * (axes - 1)])}"


def _decode(codec: Any, chunk: bytes, kind: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Decode a chunk, if it says that it holds this array, and not more."""
    # The header of Blosc: four bytes, then the sizes of the array, of a block, and of the chunk.
    stated, _, stored = struct.unpack_from("<III", chunk, 4)
    if kind.kind not in "uif" or (stated, stored) != (math.prod(shape) * kind.itemsize, len(chunk)):
        raise ValueError(f"a chunk that holds {stated} bytes, where {kind} {shape} is stated")
    return np.frombuffer(codec.decode(chunk), kind).reshape(shape)


def _codec(config: Any) -> Any:
    """Return the codec of a header. Only Blosc, which :func:`pack` uses: others execute code (``pickle``)."""
    try:
        import numcodecs
    except ImportError as error:
        raise ImportError("packed data needs numcodecs: pip install 'rsbackbones[train]'") from error
    if not isinstance(config, Mapping) or config.get("id") != _CODEC["id"] or set(config) - set(_CODEC):
        raise ValueError(f"codec {show(config)}; shards of rsbackbones pack are compressed by blosc")
    return numcodecs.get_codec(dict(config))


def narrow(image: Array) -> Array:
    """Return float32 values that float16 holds exactly, as dB of some sets, as float16: half the file."""
    if image.dtype != np.float32:
        return image
    with np.errstate(over="ignore"):
        half = image.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), image) else image


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
