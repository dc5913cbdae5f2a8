"""The two kinds of locations of a set of series; see :mod:`rsbackbones.data.series_folder`."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.date_alignment import Times
from rsbackbones.data.file_cache import FileCache
from rsbackbones.data.geotiffs import read_raw, tiffs_in
from rsbackbones.data.labelled.dataset import IGNORED
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import open_raster, reading
from rsbackbones.data.series import parse_dates
from rsbackbones.data.source import BadSample
from rsbackbones.data.zarr_zip import DAMAGE, ZarrZip

Array = npt.NDArray[Any]
STORE = "series.zarr.zip"
LABEL, CLOUD = "label", "cloud"
_DATE = re.compile(r"(?<!\d)(\d{4})(-?)(\d{2})\2(\d{2})(?!\d)")


class StoredLocation:
    """A location that :func:`write_series` wrote."""

    def __init__(
        self, folder: Path, bands: Mapping[str, tuple[str, ...]], stores: FileCache[ZarrZip]
    ) -> None:
        self.folder, self.bands = folder, bands
        with self._damage():
            self.store = stores.open(str(folder / STORE))
            given = {s: np.array(days) for s, days in self.store.attributes["dates"].items()}
            self._times = {s: parse_dates(days, s) for s, days in given.items() if s in bands}
            for sensor, days in self._times.items():
                if self.store.shape(sensor)[:2] != (len(days), len(bands[sensor])):
                    raise ValueError(
                        f"{sensor} is {list(self.store.shape(sensor))} with {len(days)} dates and "
                        f"{len(bands[sensor])} bands"
                    )
        self._orders = {s: np.argsort(days, kind="stable") for s, days in self._times.items()}

    def times(self, sensors: Iterable[str]) -> dict[str, Times]:
        return {s: self._times[s][self._orders[s]] for s in sensors if s in self._times}

    def read(self, sensor: str, index: int) -> Array:
        with self._damage():
            return self.store.read(sensor, int(self._orders[sensor][index]))

    def label(self) -> Array | None:
        with self._damage():
            return self.store.read(LABEL) if LABEL in self.store else None

    def cloud(self) -> npt.NDArray[np.bool_] | None:
        with self._damage():
            if CLOUD not in self.store:
                return None
            mask: npt.NDArray[np.bool_] = self.store.read(CLOUD)[self._orders["s2"]] != 0
            return mask

    def grid(self) -> Grid | None:
        from rasterio import Affine
        from rasterio.crs import CRS

        with self._damage():
            crs, numbers = (self.store.attributes.get(name) for name in ("crs", "transform"))
            if crs is None and numbers is None:
                return None
            height, width = self.store.shape(next(iter(self._times)))[-2:]
            return Grid(
                height, width, None if crs is None else CRS.from_user_input(crs), Affine(*(numbers or ()))
            )

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise BadSample(f"cannot read {self.folder / STORE}: {error}") from error


class RasterLocation:
    """A location of GeoTIFFs, a file per date."""

    def __init__(self, folder: Path, bands: Mapping[str, tuple[str, ...]], units: Mapping[str, str]) -> None:
        self.folder, self.bands, self.units = folder, bands, units
        self._files = {s: files for s in bands if (files := self._dated(s))}
        if not self._files:
            raise BadSample(f"{folder} holds no {STORE}, and no GeoTIFFs in folders {', '.join(bands)}")

    def _dated(self, name: str) -> list[tuple[np.datetime64, Path]]:
        """Return the files of a sensor, or of clouds, in order of time."""
        dated = []
        for path in tiffs_in(self.folder / name):
            found = _DATE.search(path.stem)
            try:
                if found is None:
                    raise ValueError
                dated.append((np.datetime64(f"{found[1]}-{found[3]}-{found[4]}"), path))
            except ValueError:
                raise BadSample(
                    f"{name}: the name of {path} holds no date such as 2019-05-03 or 20190503"
                ) from None
        return sorted(dated, key=lambda pair: pair[0])

    def times(self, sensors: Iterable[str]) -> dict[str, Times]:
        return {s: np.array([day for day, _ in self._files[s]]) for s in sensors if s in self._files}

    def read(self, sensor: str, index: int) -> Array:
        path = self._files[sensor][index][1]
        bands = {sensor: self.bands[sensor]}
        with self._damage(), open_raster(path) as raster:
            described = any(raster.descriptions)
        images, valid, grid = read_raw([path], bands, [None if described else bands[sensor]], self.units)
        self._check_grid(path, grid)
        return np.where(valid, images[sensor], np.float32(np.nan))

    def label(self) -> Array | None:
        """Return the labels, -1 where the file has no data: its nodata value, or its mask."""
        path = self.folder / f"{LABEL}.tif"
        if not path.is_file():
            return None
        label = self._layer(path)
        with self._damage(), open_raster(path) as raster, reading(raster):
            held = raster.read_masks(1) != 0
        if held.all():
            return label
        wide = label if label.dtype.kind == "f" else label.astype(np.int64)
        return np.where(held, wide, IGNORED)

    def cloud(self) -> npt.NDArray[np.bool_] | None:
        masks: dict[np.datetime64, list[Path]] = {}
        for day, path in self._dated(CLOUD):
            masks.setdefault(day, []).append(path)
        if not masks:
            return None
        days = Counter(day for day, _ in self._files.get("s2", ()))
        if wrong := [day for day in days if days[day] != len(masks.get(day, ()))]:
            raise BadSample(
                f"{self.folder / CLOUD} has {len(masks.get(wrong[0], ()))} masks for the {days[wrong[0]]} "
                f"images of s2 of {wrong[0]}"
            )
        # Images and masks of one day go together in order of their names.
        layers = [self._layer(path) for day in days for path in masks[day]]
        stacked: npt.NDArray[np.bool_] = np.stack(layers) != 0
        return stacked

    def grid(self) -> Grid | None:
        (_, path), *_ = next(iter(self._files.values()))
        with self._damage(), open_raster(path) as raster:
            return Grid.of(raster)

    def _layer(self, path: Path) -> Array:
        with self._damage(), open_raster(path) as raster:
            grid = Grid.of(raster)
            with reading(raster):
                layer: Array = raster.read(1)
        self._check_grid(path, grid)
        return layer

    def _check_grid(self, path: Path, grid: Grid) -> None:
        own = self.grid()
        assert own is not None
        if not own.same(grid):
            first = next(iter(self._files.values()))[0][1]
            raise BadSample(
                f"{path} ({grid}) is not on the grid of the location, that of {first} ({own}): write all "
                "files of a location on one grid (gdalwarp)"
            )

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise BadSample(str(error)) from error
