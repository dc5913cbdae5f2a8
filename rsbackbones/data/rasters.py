"""GeoTIFFs as sensors: the bands of rasters on one grid, and windows of them.

Needs the extra ``geo`` (rasterio).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.band_names import bands_of_description, bands_of_file, is_description
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import (
    RasterPath,
    UnreadableRaster,
    check_regular_file,
    raster_name,
    raster_paths,
    web_address,
)
from rsbackbones.data.resample import RESAMPLING, describe_resampling, finest_grid, resampled
from rsbackbones.data.s2_baseline import warn_of_baseline
from rsbackbones.data.safe_metadata import product_unit
from rsbackbones.data.tiff_files import driver_of
from rsbackbones.files import retry
from rsbackbones.input_spec import RGB8
from rsbackbones.sensors import SENSORS, get_sensor

Array = npt.NDArray[Any]
# Sensors to look for, or by modality the sensor of its bands ({"s2": "landsat_oli"}).
Sensors = Sequence[str] | Mapping[str, str]
# The name that leaves a channel out: it is no band.
SKIP = "-"


@dataclass(frozen=True)
class _Channel:
    """One band of one raster: the file's ``index`` (from 1) and the band's name in its sensor.

    A band that is ``beside`` is read for the judgement of values alone: it tells no missing pixels.
    """

    raster: int
    index: int
    band: str
    beside: bool = False


@dataclass(frozen=True)
class _Mask:
    """What tells the missing pixels of a raster: ``alpha`` bands, and the mask that GDAL makes of its tags.

    GDAL takes an alpha band for the mask, also where it is read as a band (the fourth of four 8-bit bands).
    """

    alpha: tuple[int, ...]
    of_gdal: bool

    @classmethod
    def of(cls, raster: Any, read: set[int]) -> "_Mask":
        every = _alpha_bands(raster)
        alpha = tuple(i for i in every if i not in read)
        return cls(alpha, of_gdal=len(alpha) == len(every))


def open_raster(path: RasterPath) -> Any:
    """Open a raster with rasterio; what is named ``.tif`` must be a TIFF.

    A web server that is busy is asked again, by GDAL, now and when pixels are read.

    Raises:
        ImportError: rasterio is not installed.
        UnreadableRaster: the file cannot be read as a raster.
        ValueError: it holds complex numbers, or several rasters and none itself.
    """
    try:
        import rasterio
        from rasterio.errors import RasterioIOError
    except ImportError as error:
        raise ImportError("reading GeoTIFFs needs rasterio: pip install 'rsbackbones[geo]'") from error
    check_regular_file(path)
    driver = driver_of(path)
    patience = {} if web_address(path) is None else {
        "GDAL_HTTP_MAX_RETRY": retry.TRIES - 1, "GDAL_HTTP_RETRY_DELAY": retry.PAUSE_S,
    }  # fmt: skip
    try:
        with rasterio.Env(**patience):
            raster = rasterio.open(path, driver=driver)
    except RasterioIOError as error:
        kind = "GeoTIFF" if driver else "raster"
        inside = f"; name a raster in it, /vsizip/{path}/NAME.tif" if str(path).endswith(".zip") else ""
        raise UnreadableRaster(f"cannot read {path} as a {kind}: {error}{inside}") from error
    try:
        if not raster.count:
            inside = ", ".join(raster.subdatasets[:4]) or "none"
            raise ValueError(f"{path} holds no bands itself; name one of the rasters in it: {inside}")
        if any(kind.startswith("complex") for kind in raster.dtypes):
            raise ValueError(
                f"{path} holds complex numbers (SLC); calibrate it and write its intensity first, as "
                "decibels or linear power"
            )
    except ValueError:
        raster.close()
        raise
    return raster


@contextmanager
def reading(raster: Any) -> Iterator[None]:
    """Turn a failure to read pixels into :class:`UnreadableRaster`."""
    from rasterio.errors import RasterioError

    try:
        yield
    except RasterioError as error:
        raise UnreadableRaster(f"cannot read {raster.name}: {error.__cause__ or error}") from error


def find_bands(
    path: RasterPath,
    sensors: Sensors,
    names: Sequence[str] | None = None,
    *,
    units: Mapping[str, str] | None = None,
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Find the bands of the given sensors in a raster, by their descriptions or by ``names``.

    A raster of one band without a description is named by its file (``..._B02_10m.tif``). An alpha band is a
    mask and none of the bands, unless it is named as one.

    Args:
        path: the raster.
        sensors: those to look for; by modality, where it takes the bands of another sensor.
        names: of its bands, in order, where its descriptions do not tell; ``-`` leaves one out.
        units: those that the user named, by modality. 8-bit values of others are a picture of a product and
            none, unless the file's scale and offset tags make something else of them.

    Returns:
        ``{modality: {band: index from 1}}``, and the descriptions that belong to none of the sensors.

    Raises:
        ValueError: bands without descriptions and no ``names``, another number of them, none that a
            sensor knows, a description that may mean several bands, a band twice, or 8-bit values whose unit
            is not named.
    """
    of = _by_modality(sensors)
    with open_raster(path) as raster:
        tagged = zip(raster.dtypes, raster.scales, raster.offsets, strict=True)
        plain_8_bit = [kind in ("uint8", "int8") and (a, b) == (1, 0) for kind, a, b in tagged]
        channels = names_of_channels(raster, path, of, names)
    found: dict[str, dict[str, int]] = {}
    unknown = []
    for index, (name, candidates) in channels.items():
        if len(candidates) > 1:
            may = " or ".join(_label(m, of[m]) + f" {band}" for m, band in candidates)
            raise ValueError(f"{path}: {name!r} may be {may}; {_NAME_IN_ORDER}")
        if not candidates:
            unknown.append(name)
            continue
        ((modality, band),) = candidates
        if band in found.setdefault(modality, {}):
            raise ValueError(
                f"{path}: two bands are {_label(modality, of[modality])} {band}: "
                f"{', '.join(name for name, _ in channels.values())}; {_NAME_IN_ORDER}"
            )
        found[modality][band] = index
    if not any(found.values()) or (names is not None and unknown):
        raise ValueError(
            f"{path}: the bands {', '.join(unknown) or '(none)'} belong to none of the sensors "
            f"{', '.join(_label(m, sensor) for m, sensor in of.items())}; leave the file out, or "
            f"{_NAME_IN_ORDER}{_known_elsewhere(unknown, of)}"
        )
    for modality, bands in found.items():
        if modality not in (units or {}) and any(plain_8_bit[index - 1] for index in bands.values()):
            raise ValueError(
                f"{path}: {_label(modality, of[modality])}: 8-bit values are a picture, not digital numbers; "
                f"use the product itself, or name their unit: units={{'{modality}': '{RGB8}'}} "
                f"(--units {modality}={RGB8}) takes 255 as a reflectance of 0.275"
            )
    return found, unknown


_NAME_IN_ORDER = "name its bands in order, '-' for one to leave out, as in --bands B02,B03,B04,B08,-"
# Tags of a band that hold its name: GDAL's Sentinel-2 driver and netCDF driver, STAC.
_NAME_TAGS = ("BANDNAME", "NETCDF_VARNAME", "common_name", "eo:common_name", "name")


def names_of_channels(
    raster: Any, path: RasterPath, of: Mapping[str, str], names: Sequence[str] | None
) -> dict[int, tuple[str, list[tuple[str, str]]]]:
    """Return by index from 1 a channel's name, and the (modality, band) that it may mean; without skipped."""
    count = raster.count
    alphas = _alpha_bands(raster)
    if names is not None:
        indices = [i for i in range(1, count + 1) if len(names) == count or i not in alphas]
        if len(names) != len(indices):
            has = f"{count} bands" + (f", {len(alphas)} of them alpha" if alphas else "")
            raise ValueError(
                f"{path} has {has}, {len(names)} were named: {', '.join(names)}; {_NAME_IN_ORDER}"
            )
        named = zip(indices, names, strict=True)
        given = {i: n for i, n in named if n != SKIP and not (i in alphas and n.lower() == "alpha")}
        return {i: (name, _candidates(name, of)) for i, name in given.items()}
    channels = {}
    for i, text in enumerate(raster.descriptions, start=1):
        candidates = _candidates(text, of) if is_description(text) else []
        if i in alphas and not candidates:
            continue
        if not is_description(text):
            tags = raster.tags(i)
            text = next((tags[key] for key in _NAME_TAGS if is_description(tags.get(key))), None)
            candidates = _candidates(text, of) if text else []
        if text is None and count - len(alphas) == 1:
            stem = PurePath(raster_name(path)).stem
            candidates = [(m, band) for m, s in of.items() for band in bands_of_file(get_sensor(s), stem)]
            text = raster_name(path) if candidates else None
        if text is None:
            raise ValueError(f"{path}: band {i} of {count} has no description; {_NAME_IN_ORDER}")
        channels[i] = text, candidates
    return channels


def _candidates(text: str, of: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the (modality, band) that a name may mean; the first modality that knows the name has it."""
    for modality, sensor in of.items():
        if bands := bands_of_description(get_sensor(sensor), text):
            return [(modality, band) for band in bands]
    return []


def _alpha_bands(raster: Any) -> list[int]:
    from rasterio.enums import ColorInterp

    return [i for i, color in enumerate(raster.colorinterp, start=1) if color == ColorInterp.alpha]


def not_understood(ignored: Mapping[RasterPath, Sequence[str]]) -> str:
    """Return a sentence, to add to an error about bands that are lacking, on the names that no sensor has."""
    if not ignored:
        return ""
    listed = "; ".join(
        f"{', '.join(names)} ({raster_name(path)})" for path, names in list(ignored.items())[:5]
    )
    return f". Not understood: {listed}. If one of them is meant, {_NAME_IN_ORDER}"


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
        grid: the common :class:`Grid`; ``height``, ``width``, ``crs`` and ``transform`` are its own.
        resampling: which files are resampled onto the grid, and how; empty if none is.
        stated_units: by modality the unit that tags state, of scale and offset (they are applied) or units,
            or the metadata of a Sentinel-2 product (:mod:`rsbackbones.data.safe_metadata`).
        zero_missing: modalities whose pixels have no data where all bands hold zero; none at first.
    """

    def __init__(
        self,
        paths: Sequence[RasterPath],
        sensors: Sensors,
        *,
        wanted: Mapping[str, Sequence[str]] | None = None,
        names: Sequence[Sequence[str] | None] | None = None,
        nodata: float | None = None,
        units: Mapping[str, str] | None = None,
        resample: str | None = None,
        grid: Grid | None = None,
        beside: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Open the rasters.

        Args:
            paths: one or more files, or names for GDAL (``/vsizip/...``, ``https://...``).
            sensors: those to look for; by modality, where it takes the bands of another sensor.
            wanted: by modality the bands to read; others neither count nor cost. Default: all found.
            names: for each file the names of its bands, or ``None`` to use their descriptions.
            nodata: the value without data, where the files do not state it.
            units: those that the user named, by modality; 8-bit values need one, see :func:`find_bands`.
            resample: how rasters of other grids are brought onto the finest one: ``nearest``, ``bilinear`` or
                ``cubic``. Default: they are refused.
            grid: the grid to read them on; rasters of other pixels than this grid's need ``resample``.
                Default: the finest of theirs.
            beside: by modality bands that are read too where they lie on the grid, after the others: they
                serve the judgement of values, and their missing pixels do not count.

        Raises:
            ValueError: the rasters are not on one grid, their bands are not clear or none of them is
                wanted, or they hold 8-bit values whose unit is not named.
        """
        of = _by_modality(sensors)
        paths = raster_paths(paths)
        if resample is not None and resample not in RESAMPLING:
            raise ValueError(f"resample must be one of {', '.join(RESAMPLING)}, got {resample!r}")
        if not paths:
            raise ValueError("no raster given")
        if names is not None and len(names) != len(paths):
            raise ValueError(f"{len(names)} lists of bands for {len(paths)} rasters; expected one for each")
        self.paths = tuple(paths)
        self.nodata = nodata
        self.ignored: dict[RasterPath, list[str]] = {}
        self._channels: dict[str, list[_Channel]] = {}
        for i, path in enumerate(paths):
            found, unknown = find_bands(path, of, names[i] if names else None, units=units)
            if unknown:
                self.ignored[path] = unknown
            for modality, bands in found.items():
                channels = self._channels.setdefault(modality, [])
                for band, index in bands.items():
                    extra = wanted is not None and band not in wanted.get(modality, ())
                    if extra and band not in (beside or {}).get(modality, ()):
                        continue
                    if band in [channel.band for channel in channels]:
                        if extra:
                            continue
                        label = _label(modality, of[modality])
                        raise ValueError(f"{label} {band} is in {path} and in another raster")
                    channels.append(_Channel(i, index, band, extra))
        self._channels = {m: cs for m, cs in self._channels.items() if not all(c.beside for c in cs)}
        if not self._channels:
            asked = [f"{_label(m, s)} {', '.join((wanted or {}).get(m, ()))}" for m, s in of.items()]
            raise ValueError(
                f"{', '.join(map(str, paths))}: no band is one of those wanted: {'; '.join(asked)}"
            )
        self._open = ExitStack()
        with ExitStack() as opening:
            used = sorted({c.raster for cs in self._channels.values() for c in cs if not c.beside})
            self._channels = {  # those beside, of rasters that are read anyway
                m: sorted((c for c in cs if c.raster in used), key=lambda c: c.beside)
                for m, cs in self._channels.items()
            }
            self.bands = {m: tuple(c.band for c in cs) for m, cs in self._channels.items()}
            self._rasters = {i: opening.enter_context(open_raster(paths[i])) for i in used}
            grids = {i: Grid.of(raster) for i, raster in self._rasters.items()}
            self._tags = {
                i: (raster.scales, raster.offsets, raster.units) for i, raster in self._rasters.items()
            }
            file_tags = {i: raster.tags() for i, raster in self._rasters.items()}
            self._masks = {i: _Mask.of(raster, self._read_of(i)) for i, raster in self._rasters.items()}
            self.grid = grid or (finest_grid(list(grids.values())) if resample else grids[used[0]])
            others = {i: g for i, g in grids.items() if not self.grid.same(g)}
            coarse = {i: g for i, g in others.items() if grid is None or not grid.aligned(g)}
            if coarse and resample is None:
                first: dict[RasterPath, Grid] = (
                    {"the grid": self.grid} if grid else {paths[used[0]]: grids[used[0]]}
                )
                raise ValueError(two_grids({**first, **{paths[i]: grids[i] for i in coarse}}))
            self.resampling = describe_resampling(
                resample, self.grid, {paths[i]: g for i, g in coarse.items()}
            )
            for i in others:
                has_alpha, method = bool(self._masks[i].alpha), str(resample) if i in coarse else "nearest"
                warped = resampled(self._rasters[i], self.grid, method, nodata, alpha=has_alpha)
                self._rasters[i] = opening.enter_context(warped)
                self._masks[i] = _Mask.of(self._rasters[i], self._read_of(i))
            self._open = opening.pop_all()
        self.height, self.width, self.crs, self.transform = self.grid[:4]
        self.zero_missing: frozenset[str] = frozenset()
        self.stated_units = {
            m: unit for m, channels in self._channels.items() if (unit := self._tagged_unit(of[m], channels))
        }
        for m in self._channels.keys() - self.stated_units.keys() - (units or {}).keys():
            if of[m] in ("s2", "s2_ndvi") and (unit := self._product_unit(m, file_tags)):
                self.stated_units[m] = unit

    def _tagged_unit(self, sensor: str, channels: Sequence[_Channel]) -> str | None:
        """Return the unit that the tags of a modality's bands state, if they agree on one.

        Raises:
            ValueError: some reflective bands have tags of scale and offset, and some have none.
        """
        found: set[str | None] = set()
        tagged: dict[bool, str] = {}
        for channel in (c for c in channels if not c.beside):
            scales, offsets, units = self._tags[channel.raster]
            i = channel.index - 1
            if get_sensor(sensor).kind == "radar":
                found.add("db" if (units[i] or "").lower() in ("db", "decibel") else None)
            elif not get_sensor(sensor).band(channel.band).is_thermal:
                # Scales of reflectance are 1 / 10000 or smaller (Landsat); of 8 bits about 1 / 255.
                found.add("reflectance" if 0 < scales[i] <= 1 / 200 else None)
                tagged[(scales[i], offsets[i]) != (1, 0)] = channel.band
        if len(tagged) == 2:
            raise ValueError(
                f"{tagged[True]} has scale or offset tags and {tagged[False]} has none, so that these bands "
                "would be in two units; state the same for all: gdal_edit.py -scale 0.0001 -offset 0 FILE, "
                "or -scale 1 -offset 0 for values to be read as they are"
            )
        return found.pop() if len(found) == 1 else None

    def _product_unit(self, modality: str, tags: Mapping[int, Mapping[str, str]]) -> str | None:
        """Return the unit that the metadata of the files' Sentinel-2 product state.

        Raises:
            ValueError: the files are of products with and without the offset.
        """
        channels = [c for c in self._channels[modality] if not c.beside]
        if any(
            (t[0][c.index - 1], t[1][c.index - 1]) != (1, 0) for c in channels for t in [self._tags[c.raster]]
        ):
            return None
        rasters = dict.fromkeys(channel.raster for channel in channels)
        found = {product_unit(self.paths[i]): self.paths[i] for i in rasters}
        if len(found) > 1:
            pairs = "; ".join(f"{path}: {unit or 'not stated'}" for unit, path in found.items())
            raise ValueError(f"{modality}: the files are of products in several units: {pairs}")
        (unit,) = found
        if unit is None:
            warn_of_baseline({name: text for i in rasters for name, text in tags[i].items()})
        return unit

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
        from rasterio.windows import Window

        where = None if window is None else Window(window[1], window[0], window[3], window[2])
        self._check_memory(out_shape or (window[2:] if window else (self.height, self.width)))
        arrays, valid = {}, None
        for modality, channels in self._channels.items():
            layers, zero = [], modality in self.zero_missing
            dark: Array | None = None
            for channel in channels:
                layer, good, black = self._read_channel(channel, where, out_shape)
                if channel.beside:
                    layers.append(np.where(good, layer, np.float32(0)))
                    continue
                valid = good if valid is None else valid & good
                if zero:
                    dark = black if dark is None else dark & black
                layers.append(layer)
            arrays[modality] = np.stack(layers)
            if valid is not None and dark is not None:
                valid &= ~dark
        assert valid is not None
        return {m: np.where(valid, x, np.float32(0)) for m, x in arrays.items()}, valid

    def _read_channel(
        self, channel: _Channel, where: Any, out_shape: tuple[int, int] | None
    ) -> tuple[Array, Array, Array]:
        """Return a channel as float32, where it has data, and where the file holds zero."""
        raster, mask = self._rasters[channel.raster], self._masks[channel.raster]
        options: dict[str, Any] = {"window": where, "out_shape": out_shape}
        with reading(raster):
            layer = raster.read(channel.index, masked=mask.of_gdal, **options)
            opaque = [raster.read(index, **options) != 0 for index in mask.alpha]
        data = np.ma.getdata(layer).astype(np.float32)
        good = ~np.ma.getmaskarray(layer) & np.isfinite(data)
        for part in opaque:
            good &= part
        if self.nodata is not None:
            good &= data != self.nodata
        scale, offset = (tags[channel.index - 1] for tags in self._tags[channel.raster][:2])
        return data if (scale, offset) == (1, 0) else data * scale + offset, good, data == 0

    def _read_of(self, raster: int) -> set[int]:
        """Return the indices of a raster's bands that are read."""
        return {c.index for channels in self._channels.values() for c in channels if c.raster == raster}

    def modalities_of(self, path: RasterPath) -> list[str]:
        """Return the modalities whose bands are read from a file."""
        i = self.paths.index(path)
        return [m for m, channels in self._channels.items() if any(c.raster == i for c in channels)]

    def _check_memory(self, shape: Sequence[int]) -> None:
        """Refuse what the machine cannot hold, before it tries."""
        count = sum(map(len, self._channels.values()))
        check_fits_memory(self.paths[0], (count, *shape), np.dtype(np.float32))

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


def check_fits_memory(path: RasterPath, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Refuse to read an array that the machine's memory cannot hold with its copies.

    Raises:
        ValueError: three of them are more than the memory.
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    held, needed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), dtype.itemsize
    for side in shape:
        needed *= int(side)
    if 3 * needed > held:
        raise ValueError(
            f"{path}: {' x '.join(map(str, shape))} values are {needed / 2**30:.0f} GiB, too much for the "
            f"{held / 2**30:.0f} GiB of memory here; cut the raster into parts (gdal_translate -srcwin)"
        )


def two_grids(grids: Mapping[RasterPath, Grid]) -> str:
    """Return what is wrong with rasters on these grids, of which the first two differ, and the fix."""
    (path, grid), (other_path, other) = list(grids.items())[:2]
    text = f"{path} ({grid}) and {other_path} ({other}) are not on one grid; "
    if grid.points or other.points:
        return text + f"rectify them onto one first: gdalwarp -tps -r bilinear {path} rectified.tif"
    return text + "have the coarser resampled onto the finest grid: --resample bilinear (resample='bilinear')"
