"""Images in one .npz file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.check import stack_valid, validate_sample
from rsbackbones.data.date_alignment import Times, align_complete_dates, align_dates, undated
from rsbackbones.data.grid import to_grid
from rsbackbones.data.npz_archive import Array, NpzArchive
from rsbackbones.data.npz_dates import find_kept, read_times
from rsbackbones.data.npz_layout import check_shapes, find_channels, find_dates, with_all_axes
from rsbackbones.data.source import Sample
from rsbackbones.data.windows import tile_starts
from rsbackbones.sensors import get_sensor

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NpzFile:
    """A description of a .npz file, in plain types.

    Attributes:
        path: the file.
        images: for each sensor its arrays, and the names of their channels:
            ``{"s2": {"s2_10m": ("B02", ...), "s2_20m": ("B05", ...)}, "s1": {"s1": ("VV", "VH")}}``. An
            array is [C, H, W] (one place) or [n, C, H, W]; with ``series`` [T, C, H, W] (one place at T
            dates) or [n, T, C, H, W]. Arrays of coarser pixels are resized to the finest of all.
        pick: by sensor the bands to read, in this order; others in the arrays are dropped. Default: all, in
            the order of the arrays.
        tile: cut places into tiles of this side in pixels; every tile is a place.
        series: the arrays have an axis of dates. When a place is read at all dates, an image with missing
            pixels is then marked as missing.
        dates: with ``series``, the array of ISO dates [T] or [n, T] of all sensors, or each sensor's own:
            ``{"s2": "s2_dates", "s1": "s1_dates"}``. The sorted dates of the first sensor of ``images`` are
            the frames. A sensor with other dates is aligned to them: each frame gets the nearest image, one
            to one, at most 60 days away. Without ``dates`` the frames must be in order of time.
        keep: ISO dates of the first sensor: the frames to use, such as cloudless ones. Default: all.
        units: by sensor, where it is not ``dn`` or ``db``: ``dn_baseline_0400``, or ``worldcereal_db``
            (integers x, dB = 20 log10(x) - 83).
        nodata: by sensor the value of pixels without data.
    """

    path: str
    images: dict[str, dict[str, tuple[str, ...]]]
    pick: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tile: int | None = None
    series: bool = False
    dates: str | dict[str, str] | None = None
    keep: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    nodata: dict[str, float] = field(default_factory=dict)


class NpzSource:
    """The places of a .npz file. The arrays are loaded at the first read, once in every process.

    Args:
        file: its description.
        name: default: the file's name.

    Raises:
        ValueError: there is no such file, array or date, or arrays, bands and dates do not fit together.
    """

    block = 1

    def __init__(self, file: NpzFile, name: str | None = None) -> None:
        self.file, self.root = file, Path(file.path)
        self.name = name or Path(file.path).stem
        self.bands, self._channels = find_channels(file)
        self._archive = NpzArchive(Path(file.path))
        date_arrays = find_dates(file, self._archive)
        shapes = check_shapes(file, self._archive)
        self._height = max(shape[3] for found in shapes.values() for shape in found)
        self._width = max(shape[4] for found in shapes.values() for shape in found)
        lengths = {sensor: (found[0][0], found[0][1]) for sensor, found in shapes.items()}
        self._places, self.frames = next(iter(lengths.values()))
        self._times = read_times(self._archive, date_arrays, lengths) if date_arrays else {}
        if self._times:
            self._kept = find_kept(Path(file.path), file.keep, next(iter(self._times.values())))
            self.frames = self._kept.shape[1]
        self.notes: tuple[str, ...] = tuple(
            f"{sensor}: {unit} brought to {'db' if unit == 'worldcereal_db' else 'dn'}"
            for sensor, unit in file.units.items()
            if unit not in ("dn", "db")
        )
        if file.keep:
            self.notes += (f"of the dates only {', '.join(sorted(file.keep))}",)
        self._windows: list[tuple[int, int]] = [(0, 0)]
        self._side = (self._height, self._width)
        if file.tile is not None:
            self._side = (file.tile, file.tile)
            rows, columns = tile_starts(self._height, file.tile), tile_starts(self._width, file.tile)
            self._windows = [(row, column) for row in rows for column in columns]
            if not self._windows:
                raise ValueError(
                    f"{file.path}: tile {file.tile} is larger than the images, {self._height} x {self._width}"
                )

    def __len__(self) -> int:
        return self._places * len(self._windows)

    def describe(self, place: int) -> str:
        """Return the file's name, the place's number in it and the tile's corner (row, column)."""
        index, window = divmod(place, len(self._windows))
        corner = "" if self.file.tile is None else "@{},{}".format(*self._windows[window])
        return f"{Path(self.file.path).name}[{index}]{corner}"

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place at one date, or at all dates with missing images marked.

        Raises:
            BadSample: pixels without data, no image of a sensor for the frame, or for any, or dates that
                cannot be ordered.
        """
        index, window = divmod(place, len(self._windows))
        images: dict[str, Array] = {}
        dates: dict[str, Array] = {}
        valid: dict[str, Array] = {}
        aligned = self._align(index, frame)
        for sensor, which in aligned.items():
            read = [None if i < 0 else self._read_image(sensor, index, int(i), window) for i in which]
            if self.file.series and frame is None:
                images[sensor], valid[sensor] = stack_valid(sensor, read)
            else:
                images[sensor] = np.stack([image for image in read if image is not None])
            if self._times:
                frame_days = next(iter(dates.values()), None)
                days = self._times[sensor][index][which].astype(np.int64)
                dates[sensor] = days if frame_days is None else np.where(which < 0, frame_days, days)
        if frame is not None:
            images = {sensor: image[0] for sensor, image in images.items()}
        frames = self.frames if frame is None else None
        return validate_sample(images, self.bands, frames=frames, dates=dates, valid=valid)

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Times]:
        """See :meth:`DatedSource.times`."""
        index = place // len(self._windows)
        if not self._times:
            return dict.fromkeys(sensors, undated(self.frames))
        first = next(iter(self._times))
        return {s: self._times[s][index][self._kept[index]] if s == first else self._times[s][index]
                for s in sensors}  # fmt: skip

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        index, window = divmod(place, len(self._windows))
        dates: dict[str, Array] = {}
        images: dict[str, Array] = {}
        for sensor, i in which.items():
            if self._times and sensor == next(iter(self._times)):
                i = int(self._kept[index][i])
            images[sensor] = self._read_image(sensor, index, i, window)
            if self._times:
                dates[sensor] = self._times[sensor][index][[i]].astype(np.int64)
        return validate_sample(images, {s: self.bands[s] for s in which}, frames=None, dates=dates)

    def _align(self, index: int, frame: int | None) -> dict[str, Ints]:
        """Return by sensor the position of each frame's image on its axis of dates, -1 for none."""
        if not self._times:
            which = np.arange(self.frames) if frame is None else np.arange(self.frames)[[frame]]
            return dict.fromkeys(self._channels, which)
        times = {sensor: held[index] for sensor, held in self._times.items()}
        first, kept = next(iter(times)), self._kept[index]
        times[first] = times[first][kept]
        aligned = align_dates(times) if frame is None else align_complete_dates(times, frame)
        aligned[first] = kept[aligned[first]]
        return aligned

    def _read_image(self, sensor: str, index: int, date: int, window: int) -> Array:
        """Return a sensor's image of one date, [C, H, W], NaN where there is no data."""
        parts, held = [], []
        for name, positions in self._channels[sensor].items():
            array = self._archive.read(name)
            array = array.reshape(with_all_axes(array.shape, self.file.series))
            array.flags.writeable = False  # samples may be views of it
            parts.append(self._cut(array[index, date], positions, sensor, window))
            held += [get_sensor(sensor).band(self.file.images[sensor][name][i]).name for i in positions]
        joined: Array = np.concatenate(parts, axis=-3)[[held.index(band) for band in self.bands[sensor]]]
        return joined

    def _cut(self, image: Array, channels: tuple[int, ...], sensor: str, window: int) -> Array:
        """Return channels of the window on the finest grid, in DN or dB, NaN where there is no data."""
        (row, column), (height, width) = self._windows[window], self._side
        cut = (..., slice(row, row + height), slice(column, column + width))
        fine = image.shape[-2:] == (self._height, self._width)
        if fine:
            image = image[cut]  # first: the rest is then done for one tile only
        image = image[..., list(channels), :, :]
        nodata = self.file.nodata.get(sensor)
        empty = None if nodata is None else image == nodata
        unit = self.file.units.get(sensor)
        if unit == "worldcereal_db":
            with np.errstate(divide="ignore"):  # the logarithm of 0 is infinite, and no data
                image = 20 * np.log10(image.astype(np.float32)) - np.float32(83)
        elif unit == "dn_baseline_0400":
            image = image.astype(np.float32 if image.dtype.kind == "f" else np.int32) - 1000
        if empty is not None and empty.any():
            image = np.where(empty, np.float32(np.nan), image.astype(np.float32))
        return image if fine else to_grid(image, self._height, self._width)[cut]

    def __reduce__(self) -> tuple[Any, ...]:
        return NpzSource, (self.file, self.name)
