"""Images of the dates of STAC items: composites, and which dates of two sensors go together.

====================  ========================================================================================
``median``            of the dates at which a pixel is clear; each sensor has a composite of its own dates
``least-cloudy``      the first date at which a pixel is clear, in the order of the days' cloud cover
``first``             the same in the order of time
``none``              every date; a model of series gets all dates of a sensor
====================  ========================================================================================

A day is that of the sun at the place, so that the items of one overpass are of one day. Where a pixel is of
one date, the other sensors have it of the nearest date at which they have data there; of two the earlier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import Array
from rsbackbones.embed.pixels import Pixels
from rsbackbones.embed.sources.source import Window
from rsbackbones.embed.sources.stac_grid import bounds_of_box
from rsbackbones.embed.sources.stac_item import cloud_cover, day_of, touches
from rsbackbones.embed.sources.stac_reader import ItemReader
from rsbackbones.embed.sources.stac_sensors import SensorItems

COMPOSITES = ("median", "least-cloudy", "first", "none")


class CompositeScene:
    """A :class:`rsbackbones.embed.pixels.Scene` of the composite of items.

    Args:
        sensors: by modality; the dates of a pixel are those of the first.
        reader: of the items.
        box: the ``odc.geo`` GeoBox of the grid.
        grid: the same.
        composite: one of ``COMPOSITES``.
        resample: the rule for items on other grids.
        units: by modality the unit that the items state.

    Attributes:
        pairs: by day of the first sensor and modality the days of the other sensors that were read with it.
    """

    def __init__(
        self,
        sensors: Mapping[str, SensorItems],
        reader: ItemReader,
        box: Any,
        grid: Grid,
        *,
        composite: str,
        resample: str | None,
        units: Mapping[str, str],
    ) -> None:
        self._sensors, self._reader, self._box = sensors, reader, box
        self._composite, self._resample = composite, resample
        count = len({item["id"] for sensor in sensors.values() for item in sensor.items})
        self.name, self.grid = f"{count} STAC items", grid
        self.bands = {m: sensor.bands for m, sensor in sensors.items()}
        self.ignored: dict[Any, Any] = {}
        self.stated_units = units
        self.pairs: dict[str, dict[str, set[str]]] = {}
        # Of all items, not of those that touch a window: a pixel does not depend on the window.
        self._order = days_of(next(iter(sensors.values())).items, by_cloud=composite == "least-cloudy")

    def read(self, window: Window) -> Pixels:
        """Read a window (row, column, height, width); pixels that are clear at no date have no data."""
        here, box = self._within(window)
        if self._composite == "median":
            medians = {m: self._median(sensor, box) for m, sensor in here.items()}
            arrays = {m: x for m, (x, _) in medians.items()}
            valid = np.logical_and.reduce([there for _, there in medians.values()])
        else:
            arrays, valid = self._by_day(here, box)
        arrays = {m: np.where(valid, here[m].scaled(x), np.float32(0)) for m, x in arrays.items()}
        return Pixels(arrays, valid, {})

    def _within(self, window: Window) -> tuple[dict[str, SensorItems], Any]:
        """Return the items that touch a window, and its GeoBox."""
        row, column, height, width = window
        box = self._box[row : row + height, column : column + width]
        bounds = bounds_of_box(box)
        return {
            m: sensor._replace(items=[item for item in sensor.items if touches(item, bounds)])
            for m, sensor in self._sensors.items()
        }, box

    def _median(self, sensor: SensorItems, box: Any) -> tuple[Array, Array]:
        """Return the median [C, h, w] of all days, and where there is one. Bands are read one by one."""
        shape = (box.height, box.width)
        made = np.zeros((len(sensor.bands), *shape), np.float32)
        if not sensor.items:
            return made, np.zeros(shape, bool)
        clear = self._clear(sensor, box)
        for i, band in enumerate(sensor.bands):
            layer = self._reader.read(sensor.items, [sensor.assets[band]], box, self._resample)
            made[i] = _median(layer[sensor.assets[band]], clear, zero_is_missing=sensor.zero_is_missing)
        return made, np.logical_and.reduce(np.isfinite(made))

    def _by_day(self, sensors: Mapping[str, SensorItems], box: Any) -> tuple[dict[str, Array], Array]:
        """Return images [C, h, w] of the first day at which a pixel is clear, and where there is one."""
        shape = (box.height, box.width)
        made = {m: np.zeros((len(sensor.bands), *shape), np.float32) for m, sensor in sensors.items()}
        valid: Array = np.zeros(shape, bool)
        first, *others = sensors
        held = days_of(sensors[first].items)
        for day in [day for day in self._order if day in held]:
            arrays: dict[str, Array] = {}
            new: Array = ~valid
            if not new.any():
                break
            arrays[first], there = self._day(sensors[first], day, box)
            new &= there
            for m in others:
                if new.any():
                    arrays[m], there = self._nearest(m, sensors[m], day, box, new)
                    new &= there
            if new.any():
                for m, x in arrays.items():
                    made[m][:, new] = x[:, new]
                valid |= new
        return made, valid

    def _nearest(self, m: str, sensor: SensorItems, day: str, box: Any, wanted: Array) -> tuple[Array, Array]:
        """Return the image [C, h, w] of a sensor nearest to a day, and which wanted pixels it has."""
        shape = (box.height, box.width)
        made, valid = np.zeros((len(sensor.bands), *shape), np.float32), np.zeros(shape, bool)
        for other in sorted(days_of(sensor.items), key=lambda other: (_apart(day, other), other)):
            if not (wanted & ~valid).any():
                break
            x, there = self._day(sensor, other, box)
            new = there & wanted & ~valid
            if new.any():
                made[:, new] = x[:, new]
                valid |= new
                self.pairs.setdefault(day, {}).setdefault(m, set()).add(other)
        return made, valid

    def _day(self, sensor: SensorItems, day: str, box: Any) -> tuple[Array, Array]:
        """Return the image [C, h, w] of a day, and where it is clear."""
        sensor = sensor._replace(items=[item for item in sensor.items if day_of(item) == day])
        assets = [sensor.assets[band] for band in sensor.bands]
        layers = self._reader.read(sensor.items, list(dict.fromkeys(assets)), box, self._resample)
        x = np.stack([layers[asset][0] for asset in assets])
        there = np.isfinite(x).all(axis=0) & self._clear(sensor, box)[0]
        if sensor.zero_is_missing:
            there &= ~(x == 0).all(axis=0)
        return x, there

    def _clear(self, sensor: SensorItems, box: Any) -> Array:
        """Return which pixels count by the masks, [T, h, w]. The nodata of bands may be a class of a mask."""
        clear: Array = np.ones((len(days_of(sensor.items)), box.height, box.width), bool)
        reader = replace(self._reader, nodata=None)
        for asset, classes in sensor.masks.items():
            values = reader.read(sensor.items, [asset], box, "nearest")[asset]
            clear &= np.isfinite(values) & ~np.isin(values, sorted(classes))
        return clear


class SeriesScene(CompositeScene):
    """A scene of all dates: arrays [T, C, h, w], and ``counts`` [T, h, w] where a date has data.

    Args:
        days: by modality those of the T axis. Where modalities share one axis (``paired``), other sensors
            have the dates that are nearest to those of the first.
        paired: see there.
        composite_options: as for :class:`CompositeScene`.
    """

    def __init__(
        self, *args: Any, days: Mapping[str, Sequence[str]], paired: bool, **composite_options: Any
    ) -> None:
        super().__init__(*args, composite="none", **composite_options)
        self._days, self._paired = days, paired

    def read(self, window: Window) -> Pixels:
        """Read a window; a pixel has data if each sensor has it at some date."""
        here, box = self._within(window)
        shape = (box.height, box.width)
        arrays = {
            m: np.zeros((len(self._days[m]), len(s.bands), *shape), np.float32) for m, s in here.items()
        }
        counts = {m: np.zeros((len(self._days[m]), *shape), bool) for m in here}
        for m, sensor in here.items():
            held = days_of(sensor.items)
            for t, day in enumerate(self._days[m]):
                if self._paired and m != next(iter(here)):
                    wanted = counts[next(iter(here))][t]
                    x, there = self._nearest(m, sensor, day, box, wanted)
                elif day in held:
                    x, there = self._day(sensor, day, box)
                else:
                    continue
                arrays[m][t], counts[m][t] = sensor.scaled(x), there
        if self._paired:
            both: Array = np.logical_and.reduce(list(counts.values()))
            counts = dict.fromkeys(counts, both)
        for m, x in arrays.items():
            x *= counts[m][:, None]
        valid = np.logical_and.reduce([there.any(axis=0) for there in counts.values()])
        return Pixels(arrays, valid, counts)


def _median(layer: Array, clear: Array, *, zero_is_missing: bool) -> Array:
    """Return the median [h, w] of the clear values of a layer [T, h, w], which is sorted in its place."""
    layer[~(clear & np.isfinite(layer))] = np.nan
    if zero_is_missing:  # bands are not together here
        layer[layer == 0] = np.nan
    layer.sort(axis=0)  # NaN last
    count = np.isfinite(layer).sum(axis=0)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(layer) - 1)
    middle = [np.take_along_axis(layer, i[None], axis=0)[0] for i in (low, high)]
    made: Array = (middle[0] + middle[1]) / 2
    return made


def days_of(items: Sequence[dict[str, Any]], *, by_cloud: bool = False) -> list[str]:
    """Return the days of items, in order of time or of their mean cloud cover."""
    days: dict[str, list[float]] = {}
    for item in items:
        days.setdefault(day_of(item), []).append(cloud_cover(item) or 0.0)
    if not by_cloud:
        return sorted(days)
    return sorted(days, key=lambda day: (sum(days[day]) / len(days[day]), day))


def _apart(day: str, other: str) -> int:
    return abs((date.fromisoformat(day) - date.fromisoformat(other)).days)
