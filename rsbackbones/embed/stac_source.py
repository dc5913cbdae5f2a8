"""STAC items as what a job reads, made one image by a composite of their dates."""

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rsbackbones.data.resample import RESAMPLING
from rsbackbones.embed.composite import COMPOSITES, CompositeScene, SensorItems
from rsbackbones.embed.inputs import sensors_of
from rsbackbones.embed.pixels import Scene
from rsbackbones.embed.sources import ReadOptions, Window
from rsbackbones.embed.stac_assets import band_assets, is_reflectance, mask_asset, stated_scales
from rsbackbones.embed.stac_grid import geobox_of, grid_of
from rsbackbones.embed.stac_items import day_of, facts_of, link_of, open_items, time_of
from rsbackbones.embed.stac_reader import ItemReader, Sign
from rsbackbones.models.backbone import Backbone
from rsbackbones.sensors import get_sensor
from rsbackbones.value_check import zero_is_missing


class StacSource:
    """STAC items on one grid, made one image by a composite of their dates.

    Args:
        items: ``pystac`` items or an item collection, dictionaries of them, or the path of a JSON file.
        model: whose bands are looked for among the assets.
        options: the mask names an asset; a pixel that it excludes does not count at that date.
        composite: see :mod:`rsbackbones.embed.composite`.
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
        found = open_items(items, dates)
        self._options, self._composite = options, composite
        self._reader = ItemReader(sign, options.nodata, on_unreadable == "skip")
        self._sensors = _sensors(found, model, options)
        self._box = geobox_of(
            self._used(), [a for sensor in self._sensors.values() for a in sensor.assets.values()], grid
        )
        self.grid = grid_of(self._box)
        self.layers = max(len({day_of(item) for item in s.items}) for s in self._sensors.values())

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`rsbackbones.embed.sources.Source`: items count without signatures."""
        sensors = self._sensors
        return {
            "kind": "stac",
            "composite": self._composite,
            "items": {m: [facts_of(item) for item in sensor.items] for m, sensor in sensors.items()},
            "assets": {m: sensor.assets for m, sensor in sensors.items()},
            "scales": {m: sensor.scales for m, sensor in sensors.items()},
            "unreadable": "skip" if self._reader.skip else "fail",
            **self._options.facts,
        }

    @property
    def links(self) -> list[str]:
        """See :class:`rsbackbones.embed.sources.Source`."""
        return list(dict.fromkeys(link_of(item) for s in self._sensors.values() for item in s.items))

    @property
    def times(self) -> list[datetime]:
        """When the items were acquired."""
        return sorted(time_of(item) for item in self._used())

    @contextmanager
    def open(self, model: Backbone, window: Window) -> Iterator[Scene]:
        """See :class:`rsbackbones.embed.sources.Source`."""
        units = {m: "reflectance" for m, s in self._sensors.items() if is_reflectance(s.scales)}
        yield CompositeScene(
            self._sensors, self._reader, self._box, self.grid, composite=self._composite,
            resample=self._options.resample, units=units,
        )  # fmt: skip

    def without(self, names: Collection[str]) -> "StacSource":
        """Return the source without some items, by their ids, on the same grid."""
        rest = copy.copy(self)
        rest._sensors = {
            m: sensor._replace(items=[item for item in sensor.items if item["id"] not in names])
            for m, sensor in self._sensors.items()
        }
        return rest

    def _used(self) -> list[dict[str, Any]]:
        return list({item["id"]: item for sensor in self._sensors.values() for item in sensor.items}.values())


def _sensors(found: list[Any], model: Backbone, options: ReadOptions) -> dict[str, SensorItems]:
    """Return the items of each modality of a model, optical ones first, whose dates lead.

    Raises:
        ValueError: no item has the bands of a modality, or items name their assets differently.
    """
    kinds = {m: get_sensor(sensor) for m, sensor in sensors_of(model).items()}
    optical = [m for m, sensor in kinds.items() if sensor.kind == "optical"]
    masks = _masks(found, options.mask or {}, list(kinds), optical)
    sensors: dict[str, SensorItems] = {}
    for m in sorted(kinds, key=lambda m: m not in optical):
        bands = tuple(model.bands[m])
        held = [(item, assets) for item in found if (assets := band_assets(item, kinds[m], bands))]
        if not held:
            names = dict.fromkeys(name for item in found[:3] for name in item.assets)
            raise ValueError(
                f"no item has assets of {m} ({', '.join(bands)}); the first have {', '.join(names) or 'none'}"
            )
        if any(assets != held[0][1] for _, assets in held):
            raise ValueError(f"{m}: the items name the assets of its bands differently; pass one collection")
        scales = stated_scales([item for item, _ in held], held[0][1])
        spec = model.inputs.get(m)
        unit = "reflectance" if is_reflectance(scales) else spec.unit if spec else None
        sensors[m] = SensorItems(
            [item.to_dict(include_self_link=False, transform_hrefs=False) for item, _ in held],
            bands, held[0][1], scales, masks.get(m, {}),
            zero_is_missing((options.units or {}).get(m, unit)),
        )  # fmt: skip
    return sensors


def _masks(
    found: list[Any], masks: Mapping[str, Collection[int]], modalities: list[str], optical: list[str]
) -> dict[str, dict[str, list[int]]]:
    """Return by modality the assets of its masks, with the classes that do not count.

    ``s1:NAME`` is of the modality; another name is of the optical sensors.
    """
    made: dict[str, dict[str, list[int]]] = {}
    for key, classes in masks.items():
        modality, colon, name = key.partition(":")
        named = colon and modality in modalities
        for m in [modality] if named else optical or modalities:
            of_asset = made.setdefault(m, {}).setdefault(mask_asset(found, name if named else key), [])
            of_asset += sorted(classes)
    return made
