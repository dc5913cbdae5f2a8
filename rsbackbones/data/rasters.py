"""GeoTIFFs as sensors: the bands of rasters on one grid, and windows of them.

Needs the extra ``geo`` (rasterio).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.sensors import SENSORS, UINT8_RGB, get_sensor

Array = npt.NDArray[Any]
# Sensors to look for, or by modality the sensor of its bands ({"s2": "landsat_oli"}).
Sensors = Sequence[str] | Mapping[str, str]
# Corners that differ by less than this part of a pixel are the same.
_SAME_GRID = 1e-3


@dataclass(frozen=True)
class _Channel:
    """One band of one raster: the file's ``index`` (from 1) and the band's name in its sensor."""

    raster: int
    index: int
    band: str


def open_raster(path: Path) -> Any:
    """Open a raster with rasterio.

    Raises:
        ImportError: rasterio is not installed.
        ValueError: the file cannot be read as a raster.
    """
    try:
        import rasterio
        from rasterio.errors import RasterioIOError
    except ImportError as error:
        raise ImportError("reading GeoTIFFs needs rasterio: pip install 'rsbackbones[geo]'") from error
    try:
        return rasterio.open(path)
    except RasterioIOError as error:
        raise ValueError(f"cannot read {path} as a raster: {error}") from error


def find_bands(
    path: Path,
    sensors: Sensors,
    names: Sequence[str] | None = None,
    *,
    units: Mapping[str, str] | None = None,
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Find the bands of the given sensors in a raster, by their descriptions or by ``names``.

    Args:
        path: the raster.
        sensors: those to look for; by modality, where it takes the bands of another sensor.
        names: of its bands, in order, where its descriptions do not tell; ``-`` for one to skip.
        units: those that the user named, by modality. 8-bit values of others are a picture of a product and
            none, unless the file's scale and offset tags make something else of them.

    Returns:
        ``{modality: {band: index from 1}}``, and the descriptions that belong to none of the sensors.

    Raises:
        ValueError: bands without descriptions and no ``names``, another number of them, none that a
            sensor knows, a band twice, or 8-bit values whose unit is not named.
    """
    of = _by_modality(sensors)
    with open_raster(path) as raster:
        count, found_names = raster.count, raster.descriptions
        if any(kind.startswith("complex") for kind in raster.dtypes):
            raise ValueError(
                f"{path} holds complex values, single-look complex radar data (SLC): make intensities of "
                "them, abs(x) ** 2, and calibrate these to sigma or gamma nought; or use a GRD product"
            )
        tagged = zip(raster.dtypes, raster.scales, raster.offsets, strict=True)
        plain_8_bit = [kind in ("uint8", "int8") and (a, b) == (1, 0) for kind, a, b in tagged]
    if names is not None and len(names) != count:
        raise ValueError(f"{path} has {count} bands, {len(names)} were named: {', '.join(names)}")
    if names is None and not all(found_names):
        raise ValueError(
            f"{path}: band {found_names.index(None) + 1} of {count} has no description; name the bands in "
            "order, as in --bands B02,B03,B04,B08"
        )
    found: dict[str, dict[str, int]] = {}
    unknown = []
    for index, name in enumerate(names or found_names, start=1):
        if name == "-":
            continue
        for modality, sensor in of.items():
            try:
                band = get_sensor(sensor).band(name).name
            except ValueError:
                continue
            if band in found.setdefault(modality, {}):
                raise ValueError(
                    f"{path}: two bands are {_label(modality, sensor)} {band}: "
                    f"{', '.join(names or found_names)}"
                )
            found[modality][band] = index
            break
        else:
            unknown.append(name)
    if not any(found.values()) or (names is not None and unknown):
        raise ValueError(
            f"{path}: the bands {', '.join(unknown)} belong to none of the sensors "
            f"{', '.join(_label(m, sensor) for m, sensor in of.items())}; leave the file out, or name its "
            f"bands in order, as in --bands B02,B03,B04,B08{_known_elsewhere(unknown, of)}"
        )
    found = {modality: bands for modality, bands in found.items() if bands}
    for modality, bands in found.items():
        if modality not in (units or {}) and any(plain_8_bit[index - 1] for index in bands.values()):
            raise ValueError(
                f"{path}: {_label(modality, of[modality])}: 8-bit values are a picture, not digital numbers; "
                f"use the product itself, or name their unit: units={{'{modality}': '{UINT8_RGB}'}} "
                f"(--units {modality}={UINT8_RGB}) makes value / 255 the model's input"
            )
    return found, unknown


def _by_modality(sensors: Sensors) -> dict[str, str]:
    return dict(sensors) if isinstance(sensors, Mapping) else {sensor: sensor for sensor in sensors}


def _label(modality: str, sensor: str) -> str:
    return modality if sensor == modality else f"{modality} ({sensor})"


def _known_elsewhere(names: Sequence[str], of: Mapping[str, str]) -> str:
    """Return a hint if other sensors have bands of all these names."""
    wanted = {name.strip().lower() for name in names}
    ways = []
    for sensor in SENSORS.values():
        known = {n.lower() for band in sensor.bands for n in (band.name, *band.aliases)}
        modality = next((m for m, own in of.items() if get_sensor(own).kind == sensor.kind), None)
        if wanted <= known and modality and sensor.name not in of.values():
            ways.append((sensor.title, f"--sensors {modality}={sensor.name}"))
    if not ways:
        return ""
    # Landsats name other bands alike, so that only the user can tell them apart.
    which = "" if len(ways) == 1 else "; choose yours, since the names do not tell"
    named = ", ".join(f"{title} ({way})" for title, way in ways)
    return f". They are names of {named}{which}. In Python: sensors={{MODALITY: SENSOR}}"


class RasterStack:
    """Rasters on one grid, read together as sensors.

    Attributes:
        bands: the bands of every modality, in the order in which :meth:`read` gives them.
        ignored: descriptions that belong to none of the sensors, by file.
        height, width, crs, transform: those of the common grid.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sensors: Sensors,
        *,
        wanted: Mapping[str, Sequence[str]] | None = None,
        names: Sequence[Sequence[str] | None] | None = None,
        nodata: float | None = None,
        units: Mapping[str, str] | None = None,
    ) -> None:
        """Open the rasters.

        Args:
            paths: one or more files.
            sensors: those to look for; by modality, where it takes the bands of another sensor.
            wanted: by modality the bands to read; others neither count nor cost. Default: all found.
            names: for each file the names of its bands, or ``None`` to use their descriptions.
            nodata: the value without data, where the files do not state it.
            units: those that the user named, by modality; 8-bit values need one, see :func:`find_bands`.

        Raises:
            ValueError: the rasters are not on one grid, their bands are not clear or none of them is
                wanted, or they hold 8-bit values whose unit is not named.
        """
        of = _by_modality(sensors)
        if not paths:
            raise ValueError("no raster given")
        if names is not None and len(names) != len(paths):
            raise ValueError(f"{len(names)} lists of bands for {len(paths)} rasters; expected one for each")
        self.paths = tuple(paths)
        self.nodata = nodata
        self.ignored: dict[Path, list[str]] = {}
        self._channels: dict[str, list[_Channel]] = {}
        for i, path in enumerate(paths):
            found, unknown = find_bands(path, of, names[i] if names else None, units=units)
            if unknown:
                self.ignored[path] = unknown
            for modality, bands in found.items():
                channels = self._channels.setdefault(modality, [])
                for band, index in bands.items():
                    if wanted is not None and band not in wanted.get(modality, ()):
                        continue
                    if band in [channel.band for channel in channels]:
                        label = _label(modality, of[modality])
                        raise ValueError(f"{label} {band} is in {path} and in another raster")
                    channels.append(_Channel(i, index, band))
        if not any(self._channels.values()):
            asked = [f"{_label(m, s)} {', '.join((wanted or {}).get(m, ()))}" for m, s in of.items()]
            raise ValueError(
                f"{', '.join(map(str, paths))}: no band is one of those wanted: {'; '.join(asked)}"
            )
        self._channels = {m: channels for m, channels in self._channels.items() if channels}
        self.bands = {m: tuple(c.band for c in channels) for m, channels in self._channels.items()}
        self._open = ExitStack()
        with ExitStack() as opening:
            self._rasters = [opening.enter_context(open_raster(path)) for path in paths]
            first = self._rasters[0]
            for raster in self._rasters[1:]:
                _check_grid(first, raster)
            self._open = opening.pop_all()
        self.height, self.width = first.height, first.width
        self.crs, self.transform = first.crs, first.transform

    def read(
        self,
        window: tuple[int, int, int, int] | None = None,
        out_shape: tuple[int, int] | None = None,
    ) -> tuple[dict[str, Array], Array]:
        """Read a window (row, column, height, width), by default all, optionally decimated.

        Returns:
            [C, h, w] float32 arrays by modality, with the files' scale and offset tags applied, and [h, w]
            booleans, True where all bands have data. Pixels without data hold zero.
        """
        from rasterio.errors import RasterioIOError
        from rasterio.windows import Window

        where = None if window is None else Window(window[1], window[0], window[3], window[2])
        arrays, valid = {}, None
        for modality, channels in self._channels.items():
            layers = []
            for channel in channels:
                raster = self._rasters[channel.raster]
                try:
                    layer = raster.read(channel.index, window=where, out_shape=out_shape, masked=True)
                except RasterioIOError as error:
                    raise ValueError(f"cannot read {raster.name}: {error.__cause__ or error}") from error
                data = np.ma.getdata(layer).astype(np.float32)
                good = ~np.ma.getmaskarray(layer) & np.isfinite(data)
                if self.nodata is not None:
                    good &= data != self.nodata
                valid = good if valid is None else valid & good
                scale, offset = raster.scales[channel.index - 1], raster.offsets[channel.index - 1]
                layers.append(data if (scale, offset) == (1, 0) else data * scale + offset)
            arrays[modality] = np.stack(layers)
        assert valid is not None
        return {m: np.where(valid, x, np.float32(0)) for m, x in arrays.items()}, valid

    def modalities_of(self, path: Path) -> list[str]:
        """Return the modalities whose bands are read from a file."""
        i = self.paths.index(path)
        return [m for m, channels in self._channels.items() if any(c.raster == i for c in channels)]

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def __enter__(self) -> "RasterStack":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def ground_position(transform: Any, column: float, row: float) -> tuple[float, float]:
    """Return the (x, y) of a place in a raster; written out, as operators of Affine change with versions."""
    t = transform
    return t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f


def same_grid(first: Any, other: Any) -> bool:
    """Tell whether two open rasters have their pixels in the same places: size, CRS and all corners."""
    if (first.height, first.width) != (other.height, other.width) or first.crs != other.crs:
        return False
    pixel = max(abs(v) for v in (first.transform.a, first.transform.b, first.transform.d, first.transform.e))
    for column in (0, first.width):
        for row in (0, first.height):
            here = ground_position(first.transform, column, row)
            there = ground_position(other.transform, column, row)
            if max(abs(here[0] - there[0]), abs(here[1] - there[1])) > pixel * _SAME_GRID:
                return False
    return True


def _check_grid(first: Any, other: Any) -> None:
    if not same_grid(first, other):
        raise ValueError(
            f"{first.name} ({first.width} x {first.height}, {first.crs}, origin {first.transform.c:.6g}, "
            f"{first.transform.f:.6g}) and {other.name} ({other.width} x {other.height}, {other.crs}, "
            f"origin {other.transform.c:.6g}, {other.transform.f:.6g}) are not on one grid; resample one "
            "onto the other first (gdalwarp, or rasterio.warp)"
        )
