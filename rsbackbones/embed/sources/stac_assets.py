"""The assets of STAC items: which is which band, which is a mask, and what their integers mean."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rsbackbones.data.band_names import bands_of_description
from rsbackbones.data.s2_baseline import has_offset, warn_of_baseline
from rsbackbones.sensors import Sensor

_SUBTRACTED = "earthsearch:boa_offset_applied"


def band_assets(item: Any, sensor: Sensor, bands: Sequence[str]) -> dict[str, str]:
    """Return by band the key of its asset; empty where the item lacks one. Of several the finest."""
    found: dict[str, list[str]] = {}
    for key in item.assets:
        if len(named := bands_of_description(sensor, key)) == 1:
            found.setdefault(named[0], []).append(key)
    if any(band not in found for band in bands):
        return {}
    return {band: min(found[band], key=_resolution) for band in bands}


def as_rasters(item: Any, keys: Sequence[str]) -> Any:
    """Return a ``pystac`` item with some of its assets alone, which odc-stac takes as rasters. It is changed.

    odc-stac leaves out assets of types that it does not know, and then takes another one of the same
    ``eo:bands``. Where an asset lacks a CRS, a shape or a transform, the geometry tells where the item lies.
    """
    item.assets = {key: item.assets[key] for key in keys if key in item.assets}
    for asset in item.assets.values():
        asset.media_type, asset.roles = None, ["data"]
        asset.extra_fields.pop("eo:bands", None)
    if not all(_is_placed({**item.properties, **asset.extra_fields}) for asset in item.assets.values()):
        item.stac_extensions = [name for name in item.stac_extensions if "/projection/" not in name]
    return item


def mask_asset(items: Sequence[Any], name: str) -> str:
    """Return the key of the asset of a mask.

    Raises:
        ValueError: no item has it.
    """
    keys: dict[str, str] = {key.lower(): key for item in items for key in item.assets}
    if name.strip().lower() not in keys:
        raise ValueError(f"mask {name!r}: no item has such an asset; they have {', '.join(keys.values())}")
    return keys[name.strip().lower()]


def stated_scales(items: Sequence[Any], assets: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Return scale and offset that the items state of each band (``raster:bands``, ``raster:scale``).

    Raises:
        ValueError: they state different ones.
    """
    found: dict[str, set[tuple[float, float]]] = {}
    for item in items:
        for band, key in assets.items():
            extra = item.assets[key].extra_fields
            of_band = (extra.get("raster:bands") or extra.get("bands") or [{}])[0]
            scale = of_band.get("scale", of_band.get("raster:scale", extra.get("raster:scale", 1.0)))
            offset = of_band.get("offset", of_band.get("raster:offset", extra.get("raster:offset", 0.0)))
            # Items of Earth Search state the offset where it has been subtracted, too.
            offset = 0.0 if item.properties.get(_SUBTRACTED) else float(offset)
            found.setdefault(band, set()).add((float(scale), offset))
    if several := {band: pairs for band, pairs in found.items() if len(pairs) > 1}:
        band, pairs = next(iter(several.items()))
        raise ValueError(
            f"{band}: the items state several scales and offsets, {sorted(pairs)}; embed those of one "
            "processing baseline at a time"
        )
    return {band: pair for band, (pair,) in found.items() if pair != (1.0, 0.0)}


def check_baselines(items: Sequence[Any], modality: str) -> None:
    """Warn of Sentinel-2 items whose numbers may include the offset of 1000, where nothing states the unit.

    Raises:
        ValueError: some are of a processing baseline with the offset, and others are not.
    """
    stated: dict[bool, tuple[str, dict[str, str]]] = {}
    for item in items:
        named = {n: str(v) for n, v in item.properties.items() if n.endswith("processing_baseline") and v}
        if named:
            with_offset = not item.properties.get(_SUBTRACTED) and any(map(has_offset, named.values()))
            stated.setdefault(with_offset, (item.id, named))
    if len(stated) > 1:
        raise ValueError(
            f"{modality}: {stated[True][0]} is of a processing baseline whose numbers have an offset of "
            f"1000, {stated[False][0]} of one without, and no scale is stated; embed those of one, or name "
            f"the unit if the offset has been subtracted: units={{{modality!r}: 'dn'}} (--units "
            f"{modality}=dn)"
        )
    if True in stated:
        warn_of_baseline(stated[True][1])


def is_reflectance(scales: Mapping[str, tuple[float, float]]) -> bool:
    """Tell whether stated scales turn integers into reflectances."""
    return bool(scales) and all(0 < scale <= 1 / 200 for scale, _ in scales.values())


def _is_placed(stated: Mapping[str, Any]) -> bool:
    crs = any(stated.get(f"proj:{name}") for name in ("code", "epsg", "wkt2", "projjson"))
    return bool(crs and stated.get("proj:shape") and stated.get("proj:transform"))


def _resolution(key: str) -> tuple[float, str]:
    stated = re.search(r"(\d+)m\b", key)
    return (float(stated[1]) if stated else 0.0, key)
