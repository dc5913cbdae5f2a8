"""Arrays of xarray as what a job reads."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from rsbackbones.arrays import is_dataset, to_tensor
from rsbackbones.data.class_masks import ClassMasks
from rsbackbones.data.raster_grid import Grid
from rsbackbones.embed.inputs import sensors_of
from rsbackbones.embed.pixels import Pixels, Scene
from rsbackbones.embed.sources.source import ReadOptions, Window
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess.checks import check_scale_is_applied
from rsbackbones.sensors import get_sensor
from rsbackbones.value_check import zero_is_missing

# An array in memory goes to the worker with every task.
LARGE_ARRAY = 64 * 2**20


class ArraySource:
    """A DataArray (band, y, x) with its CRS, or a Dataset of bands.

    Bands are found by their names, as :func:`rsbackbones.arrays.to_tensor` does; an array that names none is
    taken to hold those of the model, in order.
    """

    layers = 1

    def __init__(self, data: Any, model: Backbone, options: ReadOptions, *, facts: Mapping[str, Any]) -> None:
        self._data = _north_up(data)
        self._options, self._facts = options, dict(facts)
        self.grid = _grid_of(self._data)
        self._scene(model, self._data).read((0, 0, 0, 0))  # that the bands are there

    @staticmethod
    def of_memory(data: Any, model: Backbone, options: ReadOptions) -> "ArraySource":
        """Take an array of the caller; that of a file is known by the file, another by its values.

        Raises:
            ValueError: it is lazy and of no file, so that its values cannot tell one job from another.
        """
        variables = list(data.data_vars.values()) if is_dataset(data) else [data]
        sources = {str(v.encoding["source"]) for v in (data, *variables) if "source" in v.encoding}
        if all(v.variable._in_memory for v in variables):
            digest = hashlib.sha256()
            for v in variables:
                digest.update(f"{v.name} {v.dtype} {v.shape} {band_names(v)}".encode())
                digest.update(np.ascontiguousarray(v.values).data)
            facts: dict[str, Any] = {"kind": "array", "sha256": digest.hexdigest()}
        elif sources:
            facts = {
                "kind": "array",
                "files": sorted(sources),
                "sizes": {str(k): n for k, n in data.sizes.items()},
            }
        else:
            raise ValueError(
                "the array is lazy and does not say what file it is of; load it (.load()), or write it to "
                "Zarr and pass the path"
            )
        return ArraySource(data, model, options, facts=facts)

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        return {**self._facts, **self._options.facts}

    @property
    def links(self) -> list[str]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        if "files" in self._facts:
            return [f if "://" in f else f"file://{f}" for f in self._facts["files"]]
        return [f"urn:sha256:{self._facts['sha256']}"]

    def names(self, window: Window) -> list[str]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        return self.links

    @property
    def nbytes(self) -> int:
        """How many bytes of values go with the source when it is pickled."""
        parts = self._data.data_vars.values() if is_dataset(self._data) else [self._data]
        return sum(v.nbytes for v in parts if v.variable._in_memory)

    @contextmanager
    def open(self, model: Backbone, window: Window) -> Iterator[Scene]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        yield self._scene(model, self._data)

    def _scene(self, model: Backbone, data: Any) -> "ArrayScene":
        return ArrayScene(data, model, self.grid, self._options, name="the array")


class ArrayScene:
    """A :class:`rsbackbones.embed.pixels.Scene` of an xarray object."""

    def __init__(self, data: Any, model: Backbone, grid: Grid, options: ReadOptions, *, name: str) -> None:
        self._data, self._options, self.name, self.grid = data, options, name, grid
        self.bands = {m: tuple(b) for m, b in model.bands.items()}
        self.ignored: dict[Any, Any] = {}
        self.stated_units: dict[str, str] = {}
        self._sensors = sensors_of(model)
        known = {m: spec.unit for m, spec in model.inputs.items()} | dict(options.units or {})
        self._units = {m: known.get(m) or "" for m in self.bands}
        self._zero_missing = {m for m in self.bands if zero_is_missing(known.get(m))}

    def read(self, window: Window) -> Pixels:
        """Read a window (row, column, height, width)."""
        row, column, height, width = window
        part = self._data.isel(y=slice(row, row + height), x=slice(column, column + width))
        part = _loaded(part)
        arrays, valid = {}, np.ones((height, width), bool)
        for m, bands in self.bands.items():
            sensor = get_sensor(self._sensors[m])
            values, held = to_tensor(part, bands, partial(_find, sensor), m)
            if values.numel() or not values.is_floating_point():
                check_scale_is_applied(part, values, self._units[m], m)
            x = values.to(torch.float32).numpy()
            there = np.isfinite(x).all(axis=0)
            if held is not None:
                there &= held.numpy()
            if self._options.nodata is not None:
                there &= (x != self._options.nodata).all(axis=0)
            if m in self._zero_missing:
                there &= ~(x == 0).all(axis=0)
            arrays[m] = x
            valid &= there
        arrays = {m: np.where(valid, x, np.float32(0)) for m, x in arrays.items()}
        return Pixels(arrays, valid, self._counts(part, self._options.mask or {}))

    def _counts(self, part: Any, masks: ClassMasks) -> dict[str, Any]:
        optical = [m for m in self.bands if get_sensor(self._sensors[m]).kind == "optical"]
        found: dict[str, Any] = {}
        for key, classes in masks.items():
            modality, colon, name = key.partition(":")
            asked = [modality] if colon and modality in self.bands else optical or list(self.bands)
            layer = _band(part, name if colon and modality in self.bands else key)
            counts = ~np.isin(np.asarray(layer.values), sorted(classes)) & np.isfinite(layer.values)
            for m in asked:
                found[m] = found[m] & counts if m in found else counts
        return found


def _find(sensor: Any, name: str) -> str | None:
    try:
        return str(sensor.band(name).name)
    except ValueError:
        return None


def _band(data: Any, name: str) -> Any:
    """Return the layer of a mask, by its name."""
    wanted = name.strip().lower()
    if is_dataset(data):
        found = [v for n, v in data.data_vars.items() if str(n).lower() == wanted]
        names = [str(n) for n in data.data_vars]
    else:
        names = band_names(data)
        found = [data.isel({data.dims[0]: i}) for i, n in enumerate(names) if n.lower() == wanted]
    if len(found) != 1:
        raise ValueError(f"mask {name!r}: the array has {', '.join(names) or 'no names of bands'}")
    return found[0]


def band_names(data: Any) -> list[str]:
    """Return the names of bands that an array states; none where it states none."""
    if data.ndim != 3:
        return []
    band = data.coords.get(data.dims[0])
    if band is not None and band.dtype.kind in "UOT":
        return [str(name) for name in band.values]
    return [
        str(name) for name in data.attrs.get("long_name", ()) if not isinstance(data.attrs["long_name"], str)
    ]


def _loaded(data: Any) -> Any:
    """Return the values of a part; what is of dask is computed in this thread, not on a cluster."""
    if not data.chunks:
        return data.load()
    import dask

    with dask.config.set(scheduler="synchronous"):
        return data.compute()


def _north_up(data: Any) -> Any:
    for name in ("x", "y"):
        if name not in data.dims or name not in data.coords:
            raise ValueError(
                f"the array has the dimensions {tuple(data.dims)}; expected band, y and x, with the "
                "coordinates y and x"
            )
    if "time" in data.dims:
        raise ValueError(
            "the array has a dimension time: make a composite of it first, data.median('time'), or pass one "
            "date, data.isel(time=0)"
        )
    if data.sizes["y"] > 1 and float(data["y"][1]) > float(data["y"][0]):
        data = data.isel(y=slice(None, None, -1))
    return data


def _grid_of(data: Any) -> Grid:
    import odc.geo.xr  # noqa: F401

    box = data.odc.geobox
    if box is None or box.crs is None or box.affine.a <= 0 or box.affine.e >= 0:
        raise ValueError(
            "the array is not placed by a CRS and evenly spaced x and y: write it with "
            "odc.geo.xr (data.odc.assign_crs('EPSG:32632')) or rioxarray (data.rio.write_crs)"
        )
    return Grid.of_geobox(box)
