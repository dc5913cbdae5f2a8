"""SSL4EO-S12 v1.0: a folder per place and date, a GeoTIFF per band.

Read as published (Wang et al., 2023) and as its authors' code describes it. Not run on the full set: the
tests write small files in this layout.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.data.check import validate_sample
from rsbackbones.data.date_alignment import align_complete_dates
from rsbackbones.data.grid import to_grid
from rsbackbones.data.product_names import parse_acquisition_time
from rsbackbones.data.rasters import open_raster
from rsbackbones.data.source import BadSample, Sample
from rsbackbones.sensors import get_sensor

Array = npt.NDArray[Any]
Product = Literal["s2a", "s2c"]
# The finest pixels have one size, bands of 20 and 60 m are 2 and 6 times coarser.
_COARSER = (1, 2, 6)


class SSL4EOFolders:
    """``ROOT/{s1,s2a,s2c}/<id>/<product>/<band>.tif``, four products (dates) per place, in order of time.

    s2a is L2A (12 bands), s2c is L1C (13 bands), in DN; s1 is VV and VH in dB. The product's name tells
    its date; an image of Sentinel-1 goes with that of Sentinel-2 that is nearest in time, one to one.

    Args:
        root: the folder that holds ``s1`` and ``s2a`` or ``s2c``. A sensor whose folder is missing is not
            one of the source's.
        product: which Sentinel-2 product to read.
        size: all bands are resized to size x size pixels.
        frames: dates per place.
        name: default: ``ssl4eo_`` and the product.

    Raises:
        ValueError: there are no such folders.
    """

    block = 1
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path,
        *,
        product: Product = "s2a",
        size: int = 264,
        frames: int = 4,
        name: str | None = None,
    ) -> None:
        if product not in ("s2a", "s2c"):
            raise ValueError(f"product must be 's2a' (L2A) or 's2c' (L1C), got {product!r}")
        self.root = Path(root)
        self.name = name or f"ssl4eo_{product}"
        self.size, self.frames = size, frames
        candidates = {"s2": self.root / product, "s1": self.root / "s1"}
        self._folders = {sensor: folder for sensor, folder in candidates.items() if folder.is_dir()}
        if "s2" not in self._folders and (self.root / ("s2c" if product == "s2a" else "s2a")).is_dir():
            other = "s2c" if product == "s2a" else "s2a"
            raise ValueError(f"{self.root} has no {product}/, but {other}/: say product={other!r}")
        bands = {"s2": [b.name for b in get_sensor("s2").bands if product == "s2c" or b.name != "B10"]}
        bands["s1"] = [b.name for b in get_sensor("s1").bands]
        self.bands = {sensor: tuple(bands[sensor]) for sensor in self._folders}
        self._ids = sorted(
            {p.name for folder in self._folders.values() for p in folder.iterdir() if p.is_dir()}
        )
        if not self._ids:
            raise ValueError(f"{self.root} holds no places in {product}/<id>/ or s1/<id>/")

    def __len__(self) -> int:
        return len(self._ids)

    def describe(self, place: int) -> str:
        """Return the place's id, such as ``0000200``."""
        return self._ids[place]

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place at one date, opening only the files of that date, or at all dates.

        Raises:
            BadSample: a sensor, a date or a band is missing, dates cannot be ordered or are more than 60 days
                from their partners, or a file cannot be read.
        """
        folders = {sensor: folder / self._ids[place] for sensor, folder in self._folders.items()}
        products = {sensor: self._products(sensor, folder) for sensor, folder in folders.items()}
        times = {sensor: _times(folders[sensor], found) for sensor, found in products.items()}
        images, dates = {}, {}
        for sensor, which in align_complete_dates(times, frame).items():
            read = [self._read_bands(sensor, products[sensor][i]) for i in which]
            images[sensor] = np.stack(read) if frame is None else read[0]
            dates[sensor] = times[sensor][which].astype("datetime64[D]").astype(np.int64)
        return validate_sample(images, self.bands, frames=self.frames if frame is None else None, dates=dates)

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Array]:
        """See :meth:`DatedSource.times`; lists folders, and opens no file."""
        folders = {s: self._folders[s] / self._ids[place] for s in sensors}
        return {s: _times(f, self._products(s, f)) for s, f in folders.items() if f.is_dir()}

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        images, dates = {}, {}
        for sensor, i in which.items():
            folder = self._folders[sensor] / self._ids[place]
            product = self._products(sensor, folder)[i]
            images[sensor] = self._read_bands(sensor, product)
            dates[sensor] = _times(folder, [product]).astype("datetime64[D]").astype(np.int64)
        return validate_sample(images, {s: self.bands[s] for s in which}, frames=None, dates=dates)

    def _products(self, sensor: str, folder: Path) -> list[Path]:
        if not folder.is_dir():
            raise BadSample(f"{sensor} is missing: there is no {folder}")
        products = sorted(path for path in folder.iterdir() if path.is_dir())
        if len(products) != self.frames:
            raise BadSample(f"{folder} holds {len(products)} dates, expected {self.frames}")
        return products

    def _read_bands(self, sensor: str, product: Path) -> Array:
        return np.stack([self._read_band(sensor, product, band) for band in self.bands[sensor]])

    def _read_band(self, sensor: str, product: Path, band: str) -> Array:
        # The publishers write B1, we write B01.
        spellings = (band, *get_sensor(sensor).band(band).aliases)
        paths = [product / f"{spelling}.tif" for spelling in spellings]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            raise BadSample(f"{sensor} {band} is missing in {product}")
        try:
            with open_raster(path) as raster:
                layer: Array = raster.read(1)
        except (ValueError, OSError) as error:
            raise BadSample(f"cannot read {path}: {error}") from error
        height, width = layer.shape
        slack = 0.05 * self.size
        if not any(max(abs(height * k - self.size), abs(width * k - self.size)) <= slack for k in _COARSER):
            raise BadSample(
                f"{path} has {height} x {width} pixels; expected {self.size}, half or a sixth of it"
            )
        return to_grid(layer, self.size, self.size)


def _times(folder: Path, products: list[Path]) -> Array:
    try:
        return np.array([parse_acquisition_time(path.name) for path in products])
    except ValueError as error:
        raise BadSample(f"{folder}: {error}") from error
