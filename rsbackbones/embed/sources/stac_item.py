"""What a STAC item, as a dictionary, says of itself: its time and day, its place, and what tells it apart."""

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rsbackbones.files.objects import is_url

# West, south, east, north in degrees; across the antimeridian west > east, or east > 180.
Bounds = tuple[float, float, float, float]
# The property that the day is kept in.
_DAY = "rsbackbones:day"
# Degrees between points of a footprint that is projected; one that is wider may reach beyond the CRS.
_STEP, _WIDE = 0.1, 30
# A bounding box that is wider says nothing of a longitude: it is around a pole, or across the antimeridian.
_AROUND = 180


def time_of(item: Mapping[str, Any]) -> datetime:
    """Return when an item was acquired; of a range when that began."""
    stated = item["properties"].get("datetime") or item["properties"]["start_datetime"]
    found = datetime.fromisoformat(stated.replace("Z", "+00:00"))
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def with_days(items: Sequence[Mapping[str, Any]], longitude: float) -> list[dict[str, Any]]:
    """Return items with the day of each: that of the sun, UTC + longitude / 15 h.

    An overpass at midnight in UTC is of one day, and so is one across the antimeridian.

    Args:
        longitude: of the middle of the grid; items count as less than 180 degrees away from it, and those
            around a pole as there.
    """
    made = []
    for item in items:
        west, _, east, _ = bounds_of(item)
        away = ((west + east) / 2 - longitude + 180) % 360 - 180
        here = longitude + (away if east - west <= _AROUND else 0)
        day = (time_of(item) + timedelta(hours=here / 15)).strftime("%Y-%m-%d")
        made.append({**item, "properties": {**item["properties"], _DAY: day}})
    return made


def day_of(item: Mapping[str, Any]) -> str:
    """Return the day of an item, see :func:`with_days`: items of a day are one mosaic."""
    return str(item["properties"][_DAY])


def cloud_cover(item: Mapping[str, Any]) -> float | None:
    """Return the cloud cover that an item states in percent, ``None`` where it states none."""
    stated = item["properties"].get("eo:cloud_cover")
    return float(stated) if isinstance(stated, (int, float)) and math.isfinite(stated) else None


def facts_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells an item from another: its id, time and day, and a hash of it without signatures."""
    return {"id": item["id"], "collection": item.get("collection"), "datetime": time_of(item).isoformat(),
            "day": day_of(item), "sha256": hash_of(item)}  # fmt: skip


def hash_of(item: Mapping[str, Any]) -> str:
    """Return the sha256 of an item, without signatures and links."""
    plain = copy.deepcopy(dict(item))
    plain["links"] = []
    plain["properties"].pop(_DAY, None)
    for asset in plain["assets"].values():
        asset["href"] = asset["href"].partition("?")[0]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def link_of(item: Mapping[str, Any]) -> str:
    """Return the URL of an item, without the query, or a name for one that states none."""
    href = next((link["href"] for link in item["links"] if link["rel"] == "self"), None)
    if href is None:
        return ":".join(["urn:stac", *filter(None, (item.get("collection"), item["id"]))])
    plain = str(href).partition("?")[0]
    return plain if is_url(plain) else Path(plain).resolve().as_uri()


def bounds_of(item: Mapping[str, Any]) -> Bounds:
    """Return the bounding box of an item, whose east is beyond 180 degrees across the antimeridian."""
    box = item["bbox"]
    west, south, east, north = (float(box[i]) for i in ((0, 1, 2, 3) if len(box) == 4 else (0, 1, 3, 4)))
    return west, south, east + 360 * (west > east), north


def touches(item: Mapping[str, Any], bounds: Bounds) -> bool:
    """Tell whether the bounding box of an item touches another one."""
    west, south, east, north = bounds_of(item)
    left, bottom, right, top = bounds
    right += 360 * (left > right)
    if not (south <= top and bottom <= north):
        return False
    return any(west + turn <= right and left <= east + turn for turn in (-360, 0, 360))


def lies_on(item: Mapping[str, Any], box: Any, bounds: Bounds) -> bool:
    """Tell whether the footprint of an item touches an ``odc.geo`` GeoBox, which has these bounds.

    Of a footprint that is large, or lies across the antimeridian, the bounding box tells.
    """
    if not touches(item, bounds):
        return False
    west, south, east, north = bounds_of(item)
    if box.crs.geographic or east > 180 or max(east - west, north - south) > _WIDE:
        return True
    from odc.geo.geom import Geometry

    footprint = Geometry(item["geometry"], "EPSG:4326").to_crs(box.crs, _STEP, check_and_fix=True).dropna()
    return bool(footprint.intersects(box.extent))
