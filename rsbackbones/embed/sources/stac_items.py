"""Where STAC items come from: ``pystac``, a search, or a file of them."""

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from rsbackbones.embed.sources.stac_item import Bounds, bounds_of, hash_of
from rsbackbones.embed.sources.stac_table import read_table

# The names of files of items.
TABLES = (".parquet", ".geoparquet")
FILES = (".json", ".geojson", *TABLES)


def is_items(source: Any) -> bool:
    """Tell whether an object holds STAC items, or is the path of a file of them."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source).endswith(FILES)
    if isinstance(source, Mapping):
        return source.get("type") in ("Feature", "FeatureCollection")
    many = source if isinstance(source, (list, tuple)) else [source]
    kinds = ("Item", "ItemCollection", "ItemSearch")
    return bool(many) and all(
        any(kind.__name__ in kinds and "pystac" in kind.__module__ for kind in type(s).__mro__)
        or (isinstance(s, Mapping) and s.get("type") == "Feature")
        for s in many
    )


def open_items(given: Any, dates: str | None = None, bounds: Bounds | None = None) -> list[Any]:
    """Return the ``pystac`` items of a collection, a search result or a file, in order of time.

    Args:
        given: ``pystac`` items or an item collection, dictionaries of them, the result of a search, or the
            path of a JSON file or a STAC GeoParquet.
        dates: ``2024-06-01/2024-08-31`` in UTC, both days included; default: all.
        bounds: of a table only the items that touch these are read.

    Raises:
        ValueError: there is none, or one states no id, time or place, or two have one id.
    """
    import pystac

    days = None if dates is None else _days(dates)
    home = str(Path(given).resolve()) if isinstance(given, (str, os.PathLike)) else None
    if home is not None:
        given = _read(Path(home), days, bounds)
    if isinstance(given, Mapping):
        given = given.get("features") or () if given.get("type") == "FeatureCollection" else [given]
    elif isinstance(given, pystac.Item):
        given = [given]
    elif hasattr(given, "items") and callable(given.items):  # a search result
        given = list(given.items())
    items = _each_once([_parsed(one) for one in given])
    if not items:
        raise ValueError("there is no STAC item")
    for item in items:
        stated = item.get_self_href()
        if home is not None and stated is None:
            item.set_self_href(home)  # what relative links are relative to
        if item.get_self_href() is not None:
            item.make_asset_hrefs_absolute()
        if stated is None:
            item.set_self_href(None)
        if item.datetime is None and item.common_metadata.start_datetime is None:
            raise ValueError(f"the item {item.id} states no time")
        shape = _footprint(item)
        item.bbox = _box_of(item, shape)
        item.geometry = item.geometry or _polygon(item.bbox)
    items.sort(key=lambda item: (_acquired_at(item), item.id))
    within = [item for item in items if days is None or days[0] <= _acquired_at(item).date() <= days[1]]
    if not within:
        first, last = (_acquired_at(item).date() for item in (items[0], items[-1]))
        raise ValueError(f"no item is of the dates {dates}: those given are of {first}/{last}")
    return within


def _parsed(given: Any) -> Any:
    import pystac

    if isinstance(given, pystac.Item):
        return given.clone()  # which is changed
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r:.80} is no STAC item: expected an item of pystac, or a dictionary")

    try:
        return pystac.Item.from_dict(dict(given), migrate=True)
    except (
        pystac.STACError,
        pystac.STACTypeError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{given.get('id', 'a feature without id')} is no STAC item: {type(error).__name__}: {error}"
        ) from error


def _each_once(items: list[Any]) -> list[Any]:
    """Return items without those that are given twice."""
    found: dict[str, Any] = {}
    for item in items:
        if not isinstance(item.id, str) or not item.id:
            raise ValueError(f"an item states the id {item.id!r}; expected text, by which records name it")
        first = found.setdefault(item.id, item)
        if first is not item and len({hash_of(i.to_dict(transform_hrefs=False)) for i in (first, item)}) > 1:
            raise ValueError(
                f"two items that differ are {item.id} (of the collections {first.collection_id} and "
                f"{item.collection_id}), and records name items by their ids: leave one out"
            )
    return list(found.values())


def _footprint(item: Any) -> Any:
    """Return the geometry of a ``pystac`` item as a polygon of shapely; ``None``: it states none.

    Raises:
        ValueError: it is no polygon.
    """
    import shapely

    if not item.geometry:
        return None
    try:
        shape = shapely.geometry.shape(item.geometry)
    except (AttributeError, LookupError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
        raise ValueError(f"the geometry of the item {item.id} cannot be understood: {error}") from error
    if shape.geom_type not in ("Polygon", "MultiPolygon") or shape.is_empty:
        raise ValueError(
            f"the geometry of the item {item.id} is {shape:.60}; expected a polygon around its pixels, or "
            "null where the bbox tells"
        )
    return shape


def _box_of(item: Any, shape: Any) -> list[float]:
    """Return the bounding box of a ``pystac`` item, or that of its footprint if it states none."""
    box = list(item.bbox or ())
    if not box and shape is not None:
        west, south, east, north = shape.bounds
        parts = [part.bounds for part in getattr(shape, "geoms", [shape])]
        if (west, east) == (-180, 180) and all(part[0] > 0 or part[2] < 0 for part in parts):
            west = min(part[0] for part in parts if part[0] > 0)  # it is cut at the antimeridian
            east = max(part[2] for part in parts if part[2] < 0)
        box = [west, south, east, north]
    numbers = all(isinstance(x, (int, float)) and math.isfinite(x) for x in box)
    if not (len(box) in (4, 6) and numbers and box[1] <= box[len(box) // 2 + 1]):
        raise ValueError(
            f"the item {item.id} states no place: its bbox is {item.bbox}, expected west, south, east, north "
            "in degrees"
        )
    return box


def _polygon(box: list[float]) -> dict[str, Any]:
    west, south, east, north = bounds_of({"bbox": box})
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def _acquired_at(item: Any) -> datetime:
    """Return when a ``pystac`` item was acquired; of a range when that began."""
    stated: datetime = item.datetime or item.common_metadata.start_datetime
    return stated.astimezone(UTC) if stated.tzinfo else stated.replace(tzinfo=UTC)


def _read(path: Path, days: tuple[date, date] | None, bounds: Bounds | None) -> Any:
    """Return what a file of items holds."""
    if not path.is_file():
        raise ValueError(f"there is no file {path} of STAC items")
    if path.name.endswith(TABLES):
        return read_table(path, days, bounds)
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no text, or no JSON
        held = None
    if not held or not is_items(held):
        raise ValueError(
            f"{path} holds no STAC items: a JSON file of a FeatureCollection, as a search saves it, or a "
            f"STAC GeoParquet ({', '.join(TABLES)})"
        )
    return held


def _days(dates: str) -> tuple[date, date]:
    try:
        first, last = (datetime.fromisoformat(day).date() for day in dates.split("/"))
    except ValueError as error:
        raise ValueError(f"dates must be FIRST/LAST, such as 2024-06-01/2024-08-31, got {dates!r}") from error
    if first > last:
        raise ValueError(f"dates must be FIRST/LAST, the earlier day first, got {dates!r}")
    return first, last
