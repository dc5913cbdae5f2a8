"""SSL4EO-S12 v1.1: Zarr in zip, by 64 places in a file, or by one in the members of tar shards.

Read as published (Blumenstiel et al., 2025) and as its authors' code and cards describe it. Not run on the
full set: the tests write small files in these layouts.
"""

import io
import os
import tarfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.data.check import validate_sample
from rsbackbones.data.date_alignment import align_complete_dates, date_order
from rsbackbones.data.file_cache import FileCache
from rsbackbones.data.product_names import parse_acquisition_time
from rsbackbones.data.s2_baseline import Offset, carries_offset, subtract_offset
from rsbackbones.data.source import BadSample, Sample
from rsbackbones.sensors import get_sensor

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Product = Literal["S2L2A", "S2L1C"]
_SUFFIX = ".zarr.zip"
# What a damaged zip, tar, chunk or array makes zipfile, Zarr and its codecs raise.
_DAMAGE = (OSError, ValueError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, tarfile.TarError)


class SSL4EOZarr:
    """The places of SSL4EO-S12 v1.1, at four dates in order of time.

    ``ROOT/<split>/<product>/*.zarr.zip`` holds [64, 4, C, H, W] each, with the places' ids in ``sample``;
    ``ROOT/<split>/<product>/*.tar`` holds a member ``<key>.zarr.zip`` [4, C, H, W] for each place. Places
    of the two sensors are matched by id or key. ``file_id`` names the product of every date, and so tells
    the dates: Sentinel-1 is stored by platform, not by date. An image of Sentinel-1 goes with that of
    Sentinel-2 that is nearest in time, one to one.

    The release in Zarr files carries 1000 DN on Sentinel-2; the later one in tar shards does not.

    Args:
        root: the folder that holds the split's folder.
        split: ``train`` or ``val``.
        product: the Sentinel-2 product: ``S2L2A`` (12 bands) or ``S2L1C`` (13 bands). Sentinel-1 is
            ``S1GRD``. A product without folder is not one of the source's.
        offset: ``subtract`` 1000 DN from Sentinel-2, ``none``, or ``detect`` from the values of some places
            what to do. What was done is in ``notes``.
        name: default: ``ssl4eo_v11_``, the product and the split.

    Raises:
        ValueError: no such folders or files, a damaged file, ids that occur twice, or an offset that cannot
            be told.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "train",
        product: Product = "S2L2A",
        offset: Offset = "detect",
        name: str | None = None,
    ) -> None:
        if product not in ("S2L2A", "S2L1C"):
            raise ValueError(f"product must be S2L2A or S2L1C, got {product!r}")
        if offset not in ("detect", "none", "subtract"):
            raise ValueError(f"offset must be detect, none or subtract, got {offset!r}")
        self.root = Path(root)
        self.name = name or f"ssl4eo_v11_{product}_{split}"
        folders = {"s2": self.root / split / product, "s1": self.root / split / "S1GRD"}
        self._files = {sensor: _data_files(folder) for sensor, folder in folders.items() if folder.is_dir()}
        if not self._files:
            raise ValueError(f"{self.root / split} has no folder {product} or S1GRD")
        self._tars = {sensor: files[0].endswith(".tar") for sensor, files in self._files.items()}
        self._stores: FileCache[_Store] = FileCache(_Store)
        self._tar_files: FileCache[_Tar] = FileCache(_Tar)
        # By sensor and place: number of the file, and (position in it, 0) or (offset, size) in the tar.
        found = {sensor: self._index(sensor) for sensor in self._files}
        # The order of the files, so that neighbors are read from one.
        self._keys = list(dict.fromkeys(key for index in found.values() for key in index))
        self._where: dict[str, Ints] = {
            sensor: np.array([index.get(key, (-1, 0, 0)) for key in self._keys], np.int64)
            for sensor, index in found.items()
        }
        first = next(iter(found.values()))
        _, counts = np.unique([file for file, _, _ in first.values()], return_counts=True)
        self.block = int(counts.max())
        self.bands, self.frames = self._probe(product)
        self.notes: tuple[str, ...] = ()
        self._subtract = offset == "subtract"
        if offset == "detect" and "s2" in self._files:
            self._subtract = carries_offset(self._some_images())
            self.notes = ("s2: offset of 1000 DN found and subtracted",) if self._subtract else ()
        elif self._subtract:
            self.notes = ("s2: subtracted 1000 DN",)

    def __len__(self) -> int:
        return len(self._keys)

    def describe(self, place: int) -> str:
        """Return the place's id, or the key of its member in the tar."""
        return self._keys[place]

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place at one date, or at all.

        Raises:
            BadSample: a sensor is missing, dates cannot be ordered or are more than 60 days from their
                partners, or a file is damaged.
        """
        held = {sensor: self._find(sensor, place) for sensor in self._files}
        images, dates = {}, {}
        for sensor, which in align_complete_dates({s: x.times for s, x in held.items()}, frame).items():
            image = held[sensor].read(which if frame is None else which[0])
            images[sensor] = subtract_offset(image) if sensor == "s2" and self._subtract else image
            dates[sensor] = held[sensor].times[which].astype("datetime64[D]").astype(np.int64)
        return validate_sample(images, self.bands, frames=self.frames if frame is None else None, dates=dates)

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Array]:
        """See :meth:`DatedSource.times`; reads the names of the products, in tar shards the whole member."""
        return {s: self._find(s, place).times for s in sensors if self._where[s][place, 0] >= 0}

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        images, dates = {}, {}
        for sensor, i in which.items():
            held = self._find(sensor, place)
            image = held.read(np.int64(i))
            images[sensor] = subtract_offset(image) if sensor == "s2" and self._subtract else image
            dates[sensor] = held.times[[i]].astype("datetime64[D]").astype(np.int64)
        return validate_sample(images, {s: self.bands[s] for s in which}, frames=None, dates=dates)

    def _find(self, sensor: str, place: int) -> "_Images":
        file, at, size = self._where[sensor][place].tolist()
        if file < 0:
            raise BadSample(f"{sensor} is missing")
        path = self._files[sensor][file]
        with _damage_of(sensor, path):
            store, index = self._open(sensor, file, at, size)
            times = np.array([parse_acquisition_time(str(product)) for product in store.products[index]])
        if len(times) != self.frames:
            raise BadSample(f"{sensor} has {len(times)} dates, expected {self.frames}")
        return _Images(sensor=sensor, path=path, store=store, index=index, times=times)

    def _open(self, sensor: str, file: int, at: int, size: int) -> tuple["_Store", tuple[int, ...]]:
        """Return the store that holds a place, and the place's index in its arrays."""
        path = self._files[sensor][file]
        if not self._tars[sensor]:
            return self._stores.open(path), (at,)
        return _Store(io.BytesIO(self._tar_files.open(path).read(at, size))), ()

    def _index(self, sensor: str) -> dict[str, tuple[int, int, int]]:
        """Return where every place of a sensor is: {key: (file, position or offset, 0 or size)}."""
        index: dict[str, tuple[int, int, int]] = {}
        for number, path in enumerate(self._files[sensor]):
            try:
                if self._tars[sensor]:
                    members = list(_tar_members(path))
                else:
                    ids = _Store(path).array("sample")
                    members = [(str(name), i, 0) for i, name in enumerate(ids.tolist())]
            except _DAMAGE as error:
                raise ValueError(f"cannot read {path}: {error}; fetch it again, or move it away") from error
            for key, at, size in members:
                if key in index:
                    raise ValueError(
                        f"{path}: the place {key} is also in {self._files[sensor][index[key][0]]}"
                    )
                index[key] = (number, at, size)
        return index

    def _probe(self, product: str) -> tuple[dict[str, tuple[str, ...]], int]:
        """Read bands and dates from the first place of each sensor."""
        bands, frames = {}, set()
        for modality in self._files:
            sensor = get_sensor(modality)
            place = int(np.argmax(self._where[modality][:, 0] >= 0))
            file, at, size = self._where[modality][place].tolist()
            try:
                store, index = self._open(modality, file, at, size)
                shape = store.shape[len(index) :]
                bands[modality] = sensor.canonical(store.bands or _published_bands(modality, product))
            except _DAMAGE as error:
                raise ValueError(f"cannot read {self._files[modality][file]}: {error}") from error
            if len(shape) != 4 or shape[1] != len(bands[modality]):
                raise ValueError(
                    f"{self._files[modality][file]}: 'bands' has the shape {list(store.shape)}, expected "
                    f"[places, dates, {len(bands[modality])}, H, W] (in a tar without places)"
                )
            frames.add(shape[0])
        if len(frames) > 1:
            raise ValueError(f"{self.root}: the sensors have different numbers of dates: {sorted(frames)}")
        return bands, frames.pop()

    def _some_images(self, most: int = 16) -> Iterator[Array]:
        """Give the first date of some places, evenly over the source."""
        held = np.flatnonzero(self._where["s2"][:, 0] >= 0)
        for i in np.unique(np.linspace(0, len(held) - 1, most).round().astype(int)):
            try:
                images = self._find("s2", int(held[i]))
                image = images.read(date_order(images.times, "s2")[0])
            except BadSample:
                continue  # reported when it is read to train on
            yield image


@dataclass(frozen=True, kw_only=True)
class _Images:
    """A sensor's images of one place, and when they were taken, in the order of the file."""

    sensor: str
    path: str
    store: "_Store"
    index: tuple[int, ...]
    times: Array

    def read(self, which: Ints | np.int64) -> Array:
        """Read all images, in the order ``which`` says, or one of them."""
        with _damage_of(self.sensor, self.path):
            if isinstance(which, np.ndarray):
                images: Array = self.store.read(*self.index)[which]
                return images
            return self.store.read(*self.index, int(which))


@contextmanager
def _damage_of(sensor: str, path: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise BadSample(f"cannot read {sensor} in {path}: {error}") from error


class _Tar:
    """An open tar file, of which members are read by their place in it."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, at: int, size: int) -> bytes:
        return os.pread(self._file, size, at)


class _Store:
    """An open Zarr group in a zip file, or in one that was read into memory."""

    def __init__(self, file: str | BinaryIO) -> None:
        import zarr
        from zarr.core.buffer import default_buffer_prototype
        from zarr.storage import MemoryStore, ZipStore

        if isinstance(file, str):
            store: Any = ZipStore(file, mode="r")
        else:
            buffer = default_buffer_prototype().buffer
            with zipfile.ZipFile(file) as inner:
                store = MemoryStore({name: buffer.from_bytes(inner.read(name)) for name in inner.namelist()})
        group: Any = zarr.open_group(store, mode="r", zarr_format=2)
        self._group, self._images = group, group["bands"]
        self.shape: tuple[int, ...] = tuple(self._images.shape)
        self.products = self.array("file_id")
        self.bands = [str(band) for band in self.array("band").tolist()] if "band" in self._group else None

    def array(self, name: str) -> Array:
        return np.asarray(self._group[name][...])

    def read(self, *index: int) -> Array:
        return np.asarray(self._images[index if index else ...])


def _published_bands(modality: str, product: str) -> list[str]:
    names = [band.name for band in get_sensor(modality).bands]
    return [name for name in names if name != "B10" or product == "S2L1C"]


def _data_files(folder: Path) -> list[str]:
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    zips = sorted(str(path) for path in folder.glob(f"*{_SUFFIX}"))
    if bool(tars) == bool(zips):
        what = "both kinds of files" if tars else "no files"
        raise ValueError(f"{folder} holds {what}; expected *.tar or *{_SUFFIX}")
    return tars or zips


def _tar_members(path: str) -> Iterator[tuple[str, int, int]]:
    """Give key, offset and size of the places in a tar."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(_SUFFIX):
                yield Path(member.name).name.removesuffix(_SUFFIX), member.offset_data, member.size
