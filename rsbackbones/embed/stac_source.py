"""STAC items as what a job reads: loaded by odc-stac inside the task, after signing, and made one image.

Items are signed and loaded in the task, without Dask: odc-stac applies ``patch_url`` when a graph is built,
so that signed URLs of a graph expire before they are read.
"""

import copy
import hashlib
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.band_names import bands_of_description
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import UnreadableRaster
from rsbackbones.data.rasters import Array
from rsbackbones.data.resample import RESAMPLING
from rsbackbones.embed.inputs import sensors_of
from rsbackbones.embed.pixels import Pixels, Scene
from rsbackbones.embed.sources import ReadOptions, UnreadableItems, Window, plain
from rsbackbones.models.backbone import Backbone
from rsbackbones.sensors import get_sensor
from rsbackbones.value_check import zero_is_missing

COMPOSITES = ("median", "least-cloudy", "first")
# An item that cannot be read is tried so often, with a new signature each time, and pauses that double.
TRIES, PAUSE_S = 4, 0.5
_UTM_GRID = re.compile(r"utm(\d+(?:\.\d+)?)m")
# Takes an item (pystac) and returns it with URLs that can be read.
Sign = Callable[[Any], Any]


class StacSource:
    """STAC items on one grid, made one image by a composite of their dates.

    Args:
        items: ``pystac`` items or an item collection, dictionaries of them, or the path of a JSON file.
        model: whose bands are looked for among the assets.
        options: the mask names an asset; a pixel that it excludes does not count at that date.
        composite: ``median`` of the dates that have a clear pixel; ``least-cloudy``: the first clear pixel,
            of dates in the order of their cloud cover; ``first``: in the order of time. A model of two
            sensors gets one composite of each.
        grid: an ``odc.geo`` GeoBox, or ``utm10m``; default: the CRS and resolution of the items.
        dates: ``2024-06-01/2024-08-31``, both days included.
        sign: makes URLs of an item that can be read; called in the task, again where reading failed.
        on_unreadable: ``fail``, or ``skip``: an item that cannot be read is left out of the shards that need
            it, and named in their records.

    Raises:
        ValueError: no item, assets that lack bands, items in several UTM zones without ``grid``, or an
            unknown composite.
    """

    def __init__(
        self,
        items: Any,
        model: Backbone,
        options: ReadOptions,
        *,
        composite: str = "median",
        grid: Any = None,
        dates: str | None = None,
        sign: Sign | None = None,
        on_unreadable: str = "fail",
    ) -> None:
        if composite not in COMPOSITES:
            raise ValueError(f"composite must be one of {', '.join(COMPOSITES)}, got {composite!r}")
        if composite == "least-cloudy" and not options.mask:
            raise ValueError(
                "the composite least-cloudy needs to know which pixels are clouds: "
                "mask={'SCL': (3, 8, 9, 10)} (--mask)"
            )
        if on_unreadable not in ("fail", "skip"):
            raise ValueError(f"on_unreadable must be 'fail' or 'skip', got {on_unreadable!r}")
        if options.resample not in (None, *RESAMPLING):
            raise ValueError(f"resample must be one of {', '.join(RESAMPLING)}, got {options.resample!r}")
        found = [item for item in _items_of(items) if _within(item, dates)]
        if not found:
            raise ValueError(f"no item{f' of {dates}' if dates else ''} among those given")
        self._options, self._composite, self._sign = options, composite, sign
        self._skip = on_unreadable == "skip"
        self._items: dict[str, list[dict[str, Any]]] = {}
        self._assets: dict[str, dict[str, str]] = {}
        self._scales: dict[str, dict[str, tuple[float, float]]] = {}
        for m, bands in model.bands.items():
            sensor = get_sensor(sensors_of(model)[m])
            held = [(item, assets) for item in found if (assets := _assets_of(item, sensor, bands))]
            if not held:
                names = dict.fromkeys(name for item in found[:3] for name in item.assets)
                raise ValueError(
                    f"no item has assets of {m} ({', '.join(bands)}); the first have "
                    f"{', '.join(names) or 'none'}"
                )
            if any(assets != held[0][1] for _, assets in held):
                raise ValueError(
                    f"{m}: the items name the assets of its bands differently; pass one collection"
                )
            self._items[m] = [
                item.to_dict(include_self_link=False, transform_hrefs=False) for item, _ in held
            ]
            self._assets[m] = held[0][1]
            self._scales[m] = _scales([item for item, _ in held], held[0][1])
        self._masks = {key: _mask_asset(found, key.rpartition(":")[2]) for key in options.mask or {}}
        self._box = _geobox(
            self._used(), [a for assets in self._assets.values() for a in assets.values()], grid
        )
        self.grid = _grid_of(self._box)
        self.layers = max(len({_day(item) for item in items}) for items in self._items.values())

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`rsbackbones.embed.sources.Source`: items count without signatures."""
        items = {m: [_item_facts(item) for item in items] for m, items in self._items.items()}
        return {
            "kind": "stac", "composite": self._composite, "items": items, "assets": self._assets,
            "scales": self._scales, "unreadable": "skip" if self._skip else "fail", **self._options.facts,
        }  # fmt: skip

    @property
    def links(self) -> list[str]:
        """See :class:`rsbackbones.embed.sources.Source`."""
        found: dict[str, None] = {}
        for item in (item for items in self._items.values() for item in items):
            href = next((link["href"] for link in item["links"] if link["rel"] == "self"), None)
            found[href.partition("?")[0] if href else f"urn:stac:{item.get('collection')}:{item['id']}"] = (
                None
            )
        return list(found)

    def names(self, window: Window) -> list[str]:
        """See :class:`rsbackbones.embed.sources.Source`."""
        row, column, height, width = window
        outline = self._box[row : row + height, column : column + width].footprint("EPSG:4326", buffer=0)
        return [item["id"] for item in self._used() if _touches(item, outline)]

    @property
    def times(self) -> list[datetime]:
        """When the items were acquired."""
        return sorted(_time(item) for item in self._used())

    @contextmanager
    def open(self, model: Backbone, window: Window) -> Iterator[Scene]:
        """See :class:`rsbackbones.embed.sources.Source`."""
        yield StacScene(self, model)

    def without(self, names: Collection[str]) -> "StacSource":
        """Return the source without some items, by their ids, on the same grid."""
        rest = copy.copy(self)
        rest._items = {m: [i for i in items if i["id"] not in names] for m, items in self._items.items()}
        return rest

    def _used(self) -> list[dict[str, Any]]:
        return list({item["id"]: item for items in self._items.values() for item in items}.values())


class StacScene:
    """A :class:`rsbackbones.embed.pixels.Scene` of the composite of items."""

    def __init__(self, source: StacSource, model: Backbone) -> None:
        self._source = source
        self.name, self.grid = f"{len(source._used())} STAC items", source.grid
        self.bands = {m: tuple(b) for m, b in model.bands.items()}
        self.ignored: dict[Any, Any] = {}
        self.stated_units = {m: "reflectance" for m, s in source._scales.items() if _is_reflectance(s)}
        sensors, units = sensors_of(model), source._options.units or {}
        self._optical = [m for m in self.bands if get_sensor(sensors[m]).kind == "optical"]
        known = {m: spec.unit for m, spec in model.inputs.items()} | self.stated_units | dict(units)
        self._zero_missing = {m for m in self.bands if zero_is_missing(known.get(m))}

    def read(self, window: Window) -> Pixels:
        """Read a window (row, column, height, width); pixels that are clear at no date have no data."""
        row, column, height, width = window
        box = self._source._box[row : row + height, column : column + width]
        arrays, valid = {}, np.ones((height, width), bool)
        for m in self.bands:
            arrays[m], there = self._composite(m, box)
            valid &= there
        return Pixels({m: np.where(valid, x, np.float32(0)) for m, x in arrays.items()}, valid, {})

    def _composite(self, m: str, box: Any) -> tuple[Array, Array]:
        """Return the image [C, h, w] of a modality, and where it has data. Bands are read one by one."""
        source = self._source
        outline = box.footprint("EPSG:4326", buffer=0)
        items = [item for item in source._items[m] if _touches(item, outline)]
        bands, shape = self.bands[m], (box.height, box.width)
        if not items:
            return np.zeros((len(bands), *shape), np.float32), np.zeros(shape, bool)
        order = _order(items, by_cloud=source._composite == "least-cloudy")
        clear = self._clear(m, items, order, box)
        made = np.zeros((len(bands), *shape), np.float32)
        valid = np.ones(shape, bool)
        how, assets = source._options.resample, source._assets[m]
        layers = (self._load(items, assets[band], order, box, how) for band in bands)
        if source._composite == "median":
            for i, layer in enumerate(layers):
                layer[~np.isfinite(layer) | ~clear] = np.nan
                self._drop_zero(m, layer)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # no date has the pixel
                    made[i] = np.nanmedian(layer, axis=0)
        else:
            every = np.stack(list(layers))  # [C, T, h, w]
            there = np.isfinite(every).all(axis=0) & clear
            if m in self._zero_missing:
                there &= ~(every == 0).all(axis=0)
            chosen = there.argmax(axis=0)
            made = np.take_along_axis(every, chosen[None, None], axis=1)[:, 0]
            valid = there.any(axis=0)
        valid &= np.isfinite(made).all(axis=0)
        for i, band in enumerate(bands):
            scale, offset = source._scales[m].get(band, (1.0, 0.0))
            if (scale, offset) != (1.0, 0.0):
                made[i] = made[i] * np.float32(scale) + np.float32(offset)
        return np.nan_to_num(made), valid

    def _drop_zero(self, m: str, layer: Array) -> None:
        """Take zero for missing where the unit allows no such measurement; bands are not together here."""
        if m in self._zero_missing:
            layer[layer == 0] = np.nan

    def _clear(self, m: str, items: list[dict[str, Any]], order: list[str], box: Any) -> Array:
        clear = np.ones((len(order), box.height, box.width), bool)
        for key, asset in self._source._masks.items():
            modality, colon, _ = key.partition(":")
            if m in ([modality] if colon and modality in self.bands else self._optical or list(self.bands)):
                classes = sorted((self._source._options.mask or {})[key])
                values = self._load(items, asset, order, box, "nearest")
                clear &= np.isfinite(values) & ~np.isin(values, classes)
        return clear

    def _load(
        self, items: list[dict[str, Any]], asset: str, order: list[str], box: Any, resample: str | None
    ) -> Array:
        """Return an asset [T, h, w] float32, in the order of days; NaN without data."""
        try:
            return self._tried(items, asset, order, box, resample)
        except _Unreadable as error:
            bad = {item["id"]: reason for item in items if (reason := self._fault(item, asset, box))}
            if self._source._skip and bad:
                raise UnreadableItems(bad) from error
            raise UnreadableRaster(next(iter(bad.values()), str(error))) from error

    def _fault(self, item: dict[str, Any], asset: str, box: Any) -> str | None:
        try:
            self._tried([item], asset, [_day(item)], box, None)
        except _Unreadable as error:
            return str(error)
        return None

    def _tried(
        self, items: list[dict[str, Any]], asset: str, order: list[str], box: Any, resample: str | None
    ) -> Array:
        import pystac
        from odc.stac import load

        for attempt in range(TRIES):
            try:
                signed = [pystac.Item.from_dict(copy.deepcopy(item), migrate=False) for item in items]
                signed = [self._source._sign(item) for item in signed] if self._source._sign else signed
                data = load(
                    signed, [asset], geobox=box, dtype="float32", resampling=resample or "nearest",
                    groupby=lambda item, parsed, index: _day_of(item.datetime), fail_on_error=True,
                )[asset]  # fmt: skip
                break
            except Exception as error:
                if attempt == TRIES - 1:
                    named = ", ".join(item["id"] for item in items[:3]) + (", ..." if len(items) > 3 else "")
                    raise _Unreadable(f"cannot read the asset {asset} of {named}: {plain(error)}") from error
                time.sleep(PAUSE_S * 2**attempt)
        values = data.values
        for nodata in (data.attrs.get("nodata"), self._source._options.nodata):
            if nodata is not None and not math.isnan(nodata):
                values[values == nodata] = np.nan
        days = sorted({_day(item) for item in items})
        made = np.full((len(order), *values.shape[1:]), np.nan, np.float32)
        for day, layer in zip(days, values, strict=True):
            made[order.index(day)] = layer
        return made


class _Unreadable(ValueError):
    """Items that cannot be read, after all tries."""


def asset_names(items: Any) -> list[str]:
    """Return the names of the assets of items, each once."""
    return list(dict.fromkeys(name for item in _items_of(items) for name in item.assets))


def is_items(source: Any) -> bool:
    """Tell whether an object holds STAC items."""
    if isinstance(source, Mapping):
        return source.get("type") in ("Feature", "FeatureCollection")
    many = source if isinstance(source, (list, tuple)) else [source]
    kinds = ("Item", "ItemCollection", "ItemSearch")
    return bool(many) and all(
        any(kind.__name__ in kinds and "pystac" in kind.__module__ for kind in type(s).__mro__)
        or (isinstance(s, Mapping) and s.get("type") == "Feature")
        for s in many
    )


def _items_of(given: Any) -> list[Any]:
    import pystac

    home = str(Path(given).resolve()) if isinstance(given, (str, os.PathLike)) else None
    if home is not None:
        given = json.loads(Path(home).read_text(encoding="utf-8"))
    if isinstance(given, Mapping):
        given = given["features"] if given.get("type") == "FeatureCollection" else [given]
    elif isinstance(given, pystac.Item):
        given = [given]
    elif hasattr(given, "items") and callable(given.items):  # a search result
        given = list(given.items())
    items = [pystac.Item.from_dict(dict(i), migrate=True) if isinstance(i, Mapping) else i for i in given]
    for item in items:
        if home is not None and item.get_self_href() is None:
            item.set_self_href(home)  # what relative links are relative to
        if item.get_self_href() is not None:
            item.make_asset_hrefs_absolute()
        if item.datetime is None and item.common_metadata.start_datetime is None:
            raise ValueError(f"the item {item.id} states no time")
    return sorted(items, key=lambda item: (_when(item), item.id))


def _when(item: Any) -> datetime:
    stated: datetime = item.datetime or item.common_metadata.start_datetime
    return stated if stated.tzinfo else stated.replace(tzinfo=UTC)


def _within(item: Any, dates: str | None) -> bool:
    if dates is None:
        return True
    try:
        first, last = (datetime.fromisoformat(day).date() for day in dates.split("/"))
    except ValueError as error:
        raise ValueError(f"dates must be FIRST/LAST, such as 2024-06-01/2024-08-31, got {dates!r}") from error
    return bool(first <= _when(item).date() <= last)


def _assets_of(item: Any, sensor: Any, bands: Sequence[str]) -> dict[str, str]:
    """Return by band the key of its asset; empty where the item lacks one."""
    found: dict[str, list[str]] = {}
    for key in item.assets:
        if len(named := bands_of_description(sensor, key)) == 1:
            found.setdefault(named[0], []).append(key)
    if any(band not in found for band in bands):
        return {}
    return {band: min(found[band], key=_resolution) for band in bands}


def _resolution(key: str) -> tuple[float, str]:
    stated = re.search(r"(\d+)m\b", key)
    return (float(stated[1]) if stated else 0.0, key)


def _mask_asset(items: Sequence[Any], name: str) -> str:
    keys: dict[str, str] = {key.lower(): key for item in items for key in item.assets}
    if name.strip().lower() not in keys:
        raise ValueError(f"mask {name!r}: no item has such an asset; they have {', '.join(keys.values())}")
    return keys[name.strip().lower()]


def _scales(items: Sequence[Any], assets: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Return scale and offset that the items state of each band (``raster:bands``, ``raster:scale``)."""
    found: dict[str, set[tuple[float, float]]] = {}
    for item in items:
        for band, key in assets.items():
            extra = item.assets[key].extra_fields
            of_band = (extra.get("raster:bands") or extra.get("bands") or [{}])[0]
            scale = of_band.get("scale", of_band.get("raster:scale", extra.get("raster:scale", 1.0)))
            offset = of_band.get("offset", of_band.get("raster:offset", extra.get("raster:offset", 0.0)))
            found.setdefault(band, set()).add((float(scale), float(offset)))
    if several := {band: pairs for band, pairs in found.items() if len(pairs) > 1}:
        band, pairs = next(iter(several.items()))
        raise ValueError(
            f"{band}: the items state several scales and offsets, {sorted(pairs)}; embed those of one "
            "processing baseline at a time"
        )
    return {band: pair for band, (pair,) in found.items() if pair != (1.0, 0.0)}


def _is_reflectance(scales: Mapping[str, tuple[float, float]]) -> bool:
    return bool(scales) and all(0 < scale <= 1 / 200 for scale, _ in scales.values())


def _geobox(items: Sequence[dict[str, Any]], assets: list[str], grid: Any) -> Any:
    import pystac
    from odc.geo.geobox import GeoBox
    from odc.stac import output_geobox, parse_items

    if isinstance(grid, GeoBox):
        return grid
    parsed = list(parse_items([pystac.Item.from_dict(copy.deepcopy(i), migrate=False) for i in items]))
    known = [a for a in assets if any(a in p.collection.aliases or (a, 1) in p.bands for p in parsed)]
    codes = {item["properties"].get("proj:code") or item["properties"].get("proj:epsg") for item in items}
    options: dict[str, Any] = {}
    if grid is not None:
        if not isinstance(grid, str) or not (stated := _UTM_GRID.fullmatch(grid)):
            raise ValueError(f"grid must be an odc.geo GeoBox or utmNm, such as utm10m, got {grid!r}")
        options = {"crs": "utm", "resolution": float(stated[1])}
    elif len(codes) > 1:
        raise ValueError(
            f"the items lie in several CRS ({', '.join(map(str, sorted(codes, key=str)))}): choose one grid, "
            "grid='utm10m' (--grid utm10m) or a GeoBox, or embed those of each zone"
        )
    if grid is not None and len(codes) == 1 and None not in codes:
        code = codes.pop()
        options["crs"] = code if isinstance(code, str) else f"EPSG:{code}"
    box = output_geobox(parsed, known or None, **options)
    if box is None:
        raise ValueError(
            "the items do not state their CRS and resolution (proj:code, proj:transform): pass grid="
        )
    return box


def _grid_of(box: Any) -> Grid:
    from rasterio import Affine
    from rasterio.crs import CRS

    return Grid(box.height, box.width, CRS.from_wkt(box.crs.to_wkt()), Affine(*box.affine[:6]))


def _order(items: Sequence[dict[str, Any]], *, by_cloud: bool) -> list[str]:
    """Return the days of the items, in the order in which pixels are looked for."""
    days: dict[str, list[float]] = {}
    for item in items:
        days.setdefault(_day(item), []).append(float(item["properties"].get("eo:cloud_cover") or 0.0))
    if not by_cloud:
        return sorted(days)
    return sorted(days, key=lambda day: (sum(days[day]) / len(days[day]), day))


def _touches(item: Mapping[str, Any], outline: Any) -> bool:
    west, south, east, north = (
        float(item["bbox"][i]) for i in ((0, 1, 2, 3) if len(item["bbox"]) == 4 else (0, 1, 3, 4))
    )
    box = outline.boundingbox
    return bool(west <= box.right and box.left <= east and south <= box.top and box.bottom <= north)


def _time(item: Mapping[str, Any]) -> datetime:
    stated = item["properties"].get("datetime") or item["properties"]["start_datetime"]
    found = datetime.fromisoformat(stated.replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _day(item: Mapping[str, Any]) -> str:
    return _day_of(_time(item))


def _day_of(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _item_facts(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells an item from another: its id, its time, and a hash of it without signatures."""
    plain = copy.deepcopy(dict(item))
    plain["links"] = []
    for asset in plain["assets"].values():
        asset["href"] = asset["href"].partition("?")[0]
    text = json.dumps(plain, sort_keys=True, default=str)
    return {"id": item["id"], "collection": item.get("collection"), "datetime": _time(item).isoformat(),
            "sha256": hashlib.sha256(text.encode()).hexdigest()}  # fmt: skip
