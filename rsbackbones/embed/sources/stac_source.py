"""STAC items as what a job reads: one image by a composite of their dates, or every date."""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.resample import RESAMPLING
from rsbackbones.embed.composite import COMPOSITES, CompositeScene, SeriesScene, days_of
from rsbackbones.embed.inputs import check_on_unreadable
from rsbackbones.embed.pixels import Scene
from rsbackbones.embed.sources.source import ReadOptions, Window
from rsbackbones.embed.sources.stac_assets import is_reflectance
from rsbackbones.embed.sources.stac_grid import bounds_of_box, check_grid, geobox_of, is_geobox
from rsbackbones.embed.sources.stac_item import cloud_cover, day_of, facts_of, link_of, time_of, touches
from rsbackbones.embed.sources.stac_items import open_items
from rsbackbones.embed.sources.stac_reader import ItemReader, Sign
from rsbackbones.embed.sources.stac_sensors import on_grid, sensor_items
from rsbackbones.models.backbone import Backbone


class StacSource:
    """STAC items on one grid: one image by a composite of their dates, or with ``none`` every date.

    A model of single images encodes dates one by one, or together if it fuses them. A model of series takes
    all dates at once.

    Args:
        items: ``pystac`` items or an item collection, dictionaries of them, or the path of a JSON file.
        model: whose bands are looked for among the assets.
        options: the mask names an asset; a pixel that it excludes does not count at that date.
        composite: see :mod:`rsbackbones.embed.composite`.
        grid: an ``odc.geo`` GeoBox, or ``utm10m``; default: the CRS and resolution of the items. Of two
            sensors those of the optical one. Items that do not touch it do not count.
        dates: ``2024-06-01/2024-08-31`` in UTC, both days included.
        sign: makes URLs of an item that can be read; called in the task, again where reading failed.
        on_unreadable: ``fail``, or ``skip``: an item that cannot be read is left out of the shards that need
            it, and named in their records.

    Raises:
        ValueError: no item, assets that lack bands, items in several UTM zones without ``grid``, a sensor
            without items on the grid, or an unknown composite.
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
        if model.consumes == "series" and composite != "none":
            raise ValueError(
                f"{model.architecture} encodes series of dates, and {composite} makes one image of them: "
                "composite='none' (--composite none)"
            )
        if composite == "least-cloudy" and not options.mask:
            raise ValueError(
                "the composite least-cloudy needs to know which pixels are clouds: "
                "mask={'SCL': (3, 8, 9, 10)} (--mask)"
            )
        check_on_unreadable(on_unreadable)
        if options.resample not in (None, *RESAMPLING):
            raise ValueError(f"resample must be one of {', '.join(RESAMPLING)}, got {options.resample!r}")
        if options.nodata is not None and options.resample not in (None, "nearest"):
            raise ValueError(
                f"nodata={options.nodata:g} is told from the pixels of items after they are resampled, and "
                f"{options.resample!r} mixes them: have the files state it (gdal_edit.py -a_nodata), or "
                "resample to the nearest pixel"
            )
        check_grid(grid)
        found = open_items(items, dates, bounds_of_box(grid) if is_geobox(grid) else None)
        sensors = sensor_items(found, model, options)
        first = next(iter(sensors.values()))
        self._box = geobox_of(first.items, list(first.assets.values()), grid)
        self.grid = Grid.of_geobox(self._box)
        self._options, self._composite = options, composite
        self._reader = ItemReader(sign, options.nodata, on_unreadable == "skip")
        self._sensors = {
            m: on_grid(m, sensor, self._box, own=sensor is first and not is_geobox(grid))
            for m, sensor in sensors.items()
        }
        first = next(iter(self._sensors.values()))
        unknown = [item["id"] for item in first.items if cloud_cover(item) is None]
        if composite == "least-cloudy" and unknown:
            raise ValueError(
                f"{unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''} state no "
                "eo:cloud_cover, which is the order of least-cloudy: another composite, such as 'median'"
            )
        self._days = {m: days_of(sensor.items) for m, sensor in self._sensors.items()}
        self.encoded = None
        if composite == "none":
            together = "fused" if model.fuses_dates else "one by one"
            self.encoded = "series" if model.consumes == "series" else together
        if self.encoded in ("fused", "one by one"):
            self._days = dict.fromkeys(self._days, self.days)
        self.layers = max(map(len, self._days.values())) if composite == "median" else 1

    @property
    def days(self) -> list[str]:
        """The days of the first sensor, in order."""
        return self._days[next(iter(self._days))]

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`rsbackbones.embed.sources.source.Source`: items count without signatures."""
        sensors = self._sensors
        return {
            "kind": "stac",
            "composite": self._composite,
            "dates": {"encoded": self.encoded, "days": self._days} if self.encoded else None,
            "day": "of the sun: UTC + longitude / 15 h",
            "pairing": self._pairing,
            "items": {m: [facts_of(item) for item in sensor.items] for m, sensor in sensors.items()},
            "assets": {m: sensor.assets for m, sensor in sensors.items()},
            "scales": {m: sensor.scales for m, sensor in sensors.items()},
            "unreadable": "skip" if self._reader.skip else "fail",
            **self._options.facts,
        }

    @property
    def links(self) -> list[str]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        return list(dict.fromkeys(link_of(item) for s in self._sensors.values() for item in s.items))

    def names(self, window: Window) -> list[str]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        row, column, height, width = window
        bounds = bounds_of_box(self._box[row : row + height, column : column + width])
        return [item["id"] for item in self._used() if touches(item, bounds)]

    @property
    def footprints(self) -> list[Any]:
        """Where the items of the first sensor lie, as polygons of shapely in EPSG:4326."""
        import shapely

        first = next(iter(self._sensors.values()))
        return [shapely.geometry.shape(item["geometry"]) for item in first.items]

    @property
    def times(self) -> list[datetime]:
        """When the items were acquired."""
        return sorted(time_of(item) for item in self._used())

    @contextmanager
    def open(self, model: Backbone, window: Window) -> Iterator[Scene]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        units = {m: "reflectance" for m, s in self._sensors.items() if is_reflectance(s.scales)}
        given, options = (self._sensors, self._reader, self._box, self.grid), self._options
        if self.encoded in ("series", "fused"):
            yield SeriesScene(
                *given, days=self._days, paired=self.encoded == "fused", resample=options.resample,
                units=units,
            )  # fmt: skip
        else:
            yield CompositeScene(
                *given, composite=self._composite, resample=options.resample, units=units
            )  # fmt: skip

    def on(self, day: str) -> "StacSource":
        """Return the source with one day of the first sensor, on the same grid."""
        one = copy.copy(self)
        first = next(iter(self._sensors))
        sensor = self._sensors[first]
        items = [item for item in sensor.items if day_of(item) == day]
        one._sensors = self._sensors | {first: sensor._replace(items=items)}
        return one

    def without(self, names: Collection[str]) -> "StacSource":
        """Return the source without some items, by their ids, on the same grid."""
        rest = copy.copy(self)
        rest._sensors = {
            m: sensor._replace(items=[item for item in sensor.items if item["id"] not in names])
            for m, sensor in self._sensors.items()
        }
        return rest

    @property
    def _pairing(self) -> str | None:
        """Which dates of two sensors go together."""
        first, *others = self._sensors
        if not others:
            return None
        if self._composite == "median" or self.encoded == "series":
            return "each sensor has its own dates"
        return f"{', '.join(others)} of the date nearest to that of {first}"

    def _used(self) -> list[dict[str, Any]]:
        return list({item["id"]: item for sensor in self._sensors.values() for item in sensor.items}.values())
