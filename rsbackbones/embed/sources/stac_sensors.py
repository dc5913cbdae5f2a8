"""Which STAC items are of which sensor of a model, and how their assets are read."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rsbackbones.data.class_masks import ClassMasks
from rsbackbones.data.rasters import Array
from rsbackbones.embed.inputs import sensors_of
from rsbackbones.embed.sources.source import ReadOptions
from rsbackbones.embed.sources.stac_assets import (
    band_assets,
    check_baselines,
    is_reflectance,
    mask_asset,
    stated_scales,
)
from rsbackbones.embed.sources.stac_grid import bounds_of_box, parsed, stated_crs
from rsbackbones.embed.sources.stac_item import lies_on, with_days
from rsbackbones.embed.utm import zone_of
from rsbackbones.models.backbone import Backbone
from rsbackbones.sensors import Sensor, get_sensor
from rsbackbones.value_check import WITH_CIRRUS, zero_is_missing


class SensorItems(NamedTuple):
    """The items of a modality and how their assets are read.

    Attributes:
        items: as dictionaries, in order of time.
        bands: of the model.
        assets: by band the key of its asset.
        scales: by band scale and offset, where the items state them.
        masks: by asset the classes of pixels that do not count.
        zero_is_missing: a pixel that is zero in all bands has no data.
    """

    items: Sequence[dict[str, Any]]
    bands: tuple[str, ...]
    assets: Mapping[str, str]
    scales: Mapping[str, tuple[float, float]]
    masks: ClassMasks
    zero_is_missing: bool

    def scaled(self, values: Array) -> Array:
        """Return values [C, h, w] with the stated scale and offset; NaN becomes zero."""
        for i, band in enumerate(self.bands):
            scale, offset = self.scales.get(band, (1.0, 0.0))
            if (scale, offset) != (1.0, 0.0):
                values[i] = values[i] * np.float32(scale) + np.float32(offset)
        return np.nan_to_num(values)


def sensor_items(found: Sequence[Any], model: Backbone, options: ReadOptions) -> dict[str, SensorItems]:
    """Return the ``pystac`` items of each modality of a model, optical ones first, whose dates and grid lead.

    Raises:
        ValueError: no item has the bands of a modality, items name their assets differently, lack a mask, or
            have relative links.
    """
    kinds = _kinds(model)
    optical = [m for m, sensor in kinds.items() if sensor.kind == "optical"]
    masks = _masks(found, options.mask or {}, list(kinds), optical)
    sensors: dict[str, SensorItems] = {}
    for m in kinds:
        bands = tuple(model.bands[m])
        held = [(item, assets) for item in found if (assets := band_assets(item, kinds[m], bands))]
        if not held:
            names = dict.fromkeys(name for item in found[:3] for name in item.assets)
            raise ValueError(
                f"no item has assets of {m} ({', '.join(bands)}); the first have {', '.join(names) or 'none'}"
            )
        items, assets = [item for item, _ in held], held[0][1]
        if any(named != assets for _, named in held):
            raise ValueError(f"{m}: the items name the assets of its bands differently; pass one collection")
        _check_assets(items, [*assets.values(), *masks.get(m, {})])
        scales = stated_scales(items, assets)
        if kinds[m].name in WITH_CIRRUS and not scales and m not in (options.units or {}):
            check_baselines(items, m)
        spec = model.inputs.get(m)
        unit = "reflectance" if is_reflectance(scales) else spec.unit if spec else None
        sensors[m] = SensorItems(
            [item.to_dict(transform_hrefs=False) for item in items],
            bands, assets, scales, masks.get(m, {}),
            zero_is_missing((options.units or {}).get(m, unit)),
        )  # fmt: skip
    return sensors


def on_grid(modality: str, sensor: SensorItems, box: Any, *, own: bool) -> SensorItems:
    """Return the items whose footprint touches a GeoBox, with their days there.

    Args:
        modality: for messages.
        sensor: all items.
        box: the GeoBox.
        own: whether it was made of these items, which then all lie on it.

    Raises:
        ValueError: none does, or what one states of its place contradicts itself or cannot be understood.
    """
    west, south, east, north = bounds = bounds_of_box(box)
    items = [item for item in sensor.items if lies_on(item, box, bounds)]
    if own and len(items) < len(sensor.items):
        away = next(item for item in sensor.items if item not in items)
        raise ValueError(
            f"the item {away['id']} lies elsewhere by its bbox {away['bbox']} and its geometry than by its "
            "proj:transform; correct it, or leave it out"
        )
    if not items:
        raise ValueError(
            f"no item of {modality} lies on the grid, which is between {west:.2f} and {east:.2f} degrees of "
            f"longitude, {south:.2f} and {north:.2f} of latitude; the first, "
            f"{sensor.items[0]['id']}, has the bbox {sensor.items[0]['bbox']}"
        )
    if not own:  # whose places are in the grid already
        parsed(items, list(sensor.assets.values()))
    return sensor._replace(items=with_days(items, (west + east + 360 * (west > east)) / 2))


def items_by_zone(found: Sequence[Any], model: Backbone) -> dict[str, list[Any]]:
    """Return ``pystac`` items by the UTM zone of their first sensor; of one zone, or other CRS, nothing.

    Items of other sensors are in every zone: each takes those on its grid.
    """
    first, kind = next(iter(_kinds(model).items()))
    zones: dict[str | None, list[Any]] = {}
    others = []
    for item in found:
        if assets := band_assets(item, kind, model.bands[first]):
            extra = {key: asset.extra_fields for key, asset in item.assets.items()}
            crs = stated_crs(item.properties, extra, list(assets.values()))
            zones.setdefault(zone_of(crs), []).append(item)
        else:
            others.append(item)
    if None in zones or len(zones) < 2:
        return {}
    return {str(zone): zones[zone] + others for zone in sorted(zones, key=str)}


def _kinds(model: Backbone) -> dict[str, Sensor]:
    """Return the sensors of a model by modality, optical ones first."""
    kinds = {m: get_sensor(sensor) for m, sensor in sensors_of(model).items()}
    return dict(sorted(kinds.items(), key=lambda pair: pair[1].kind != "optical"))


def _masks(
    found: Sequence[Any], masks: Mapping[str, Collection[int]], modalities: list[str], optical: list[str]
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


def _check_assets(items: Sequence[Any], keys: Sequence[str]) -> None:
    """Refuse items without an asset, or with one whose link is relative to nothing."""
    for item in items:
        for key in keys:
            if key not in item.assets:
                raise ValueError(
                    f"the item {item.id} has no asset {key}, a mask of the others: leave out one of both"
                )
            if item.assets[key].get_absolute_href() is None:
                raise ValueError(
                    f"the asset {key} of {item.id} has the relative link {item.assets[key].href}, and the "
                    "item states no URL of its own: pass the file of the items, or make links absolute"
                )
