"""STAC items: where they come from, and what each says of itself."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsbackbones.embed.sources.stac_table import read_table
from rsbackbones.files.objects import is_url

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


def open_items(given: Any, dates: str | None = None) -> list[Any]:
    """Return the ``pystac`` items of a collection, a search result or a file, in order of time.

    Args:
        given: ``pystac`` items or an item collection, dictionaries of them, the result of a search, or the
            path of a JSON file or a STAC GeoParquet.
        dates: ``2024-06-01/2024-08-31``, both days included; default: all.

    Raises:
        ValueError: there is none, or one states no time.
    """
    import pystac

    home = str(Path(given).resolve()) if isinstance(given, (str, os.PathLike)) else None
    if home is not None:
        given = _read(Path(home))
    if isinstance(given, Mapping):
        given = given["features"] if given.get("type") == "FeatureCollection" else [given]
    elif isinstance(given, pystac.Item):
        given = [given]
    elif hasattr(given, "items") and callable(given.items):  # a search result
        given = list(given.items())
    items = [pystac.Item.from_dict(dict(i), migrate=True) if isinstance(i, Mapping) else i for i in given]
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
    if not items:
        raise ValueError("there is no STAC item")
    items.sort(key=lambda item: (acquired_at(item), item.id))
    if not (within := [item for item in items if _within(item, dates)]):
        first, last = (acquired_at(item).date() for item in (items[0], items[-1]))
        raise ValueError(f"no item is of the dates {dates}: those given are of {first}/{last}")
    return within


def acquired_at(item: Any) -> datetime:
    """Return when a ``pystac`` item was acquired; of a range when that began."""
    stated: datetime = item.datetime or item.common_metadata.start_datetime
    return stated.astimezone(UTC) if stated.tzinfo else stated.replace(tzinfo=UTC)


def time_of(item: Mapping[str, Any]) -> datetime:
    """Return when an item, as a dictionary, was acquired; of a range when that began."""
    stated = item["properties"].get("datetime") or item["properties"]["start_datetime"]
    found = datetime.fromisoformat(stated.replace("Z", "+00:00"))
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def day_of(item: Mapping[str, Any]) -> str:
    """Return the day of an item in UTC: items of a day are one mosaic."""
    return day_at(time_of(item))


def day_at(moment: datetime) -> str:
    """Return the day of a time."""
    return moment.strftime("%Y-%m-%d")


def facts_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells an item from another: its id, its time, and a hash of it without signatures."""
    plain = copy.deepcopy(dict(item))
    plain["links"] = []
    for asset in plain["assets"].values():
        asset["href"] = asset["href"].partition("?")[0]
    text = json.dumps(plain, sort_keys=True, default=str)
    return {"id": item["id"], "collection": item.get("collection"), "datetime": time_of(item).isoformat(),
            "sha256": hashlib.sha256(text.encode()).hexdigest()}  # fmt: skip


def link_of(item: Mapping[str, Any]) -> str:
    """Return the URL of an item, without the query, or a name for one that states none."""
    href = next((link["href"] for link in item["links"] if link["rel"] == "self"), None)
    if href is None:
        return ":".join(["urn:stac", *filter(None, (item.get("collection"), item["id"]))])
    plain = str(href).partition("?")[0]
    return plain if is_url(plain) else Path(plain).resolve().as_uri()


def touches(item: Mapping[str, Any], outline: Any) -> bool:
    """Tell whether the bounding box of an item touches that of an ``odc.geo`` geometry in degrees."""
    west, south, east, north = (
        float(item["bbox"][i]) for i in ((0, 1, 2, 3) if len(item["bbox"]) == 4 else (0, 1, 3, 4))
    )
    box = outline.boundingbox
    if not (south <= box.top and box.bottom <= north):
        return False
    if west > east:  # across the antimeridian
        return bool(west <= box.right or box.left <= east)
    return bool(west <= box.right and box.left <= east)


def _read(path: Path) -> Any:
    """Return what a file of items holds."""
    if not path.is_file():
        raise ValueError(f"there is no file {path} of STAC items")
    if path.name.endswith(TABLES):
        return read_table(path)
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


def _within(item: Any, dates: str | None) -> bool:
    if dates is None:
        return True
    try:
        first, last = (datetime.fromisoformat(day).date() for day in dates.split("/"))
    except ValueError as error:
        raise ValueError(f"dates must be FIRST/LAST, such as 2024-06-01/2024-08-31, got {dates!r}") from error
    if first > last:
        raise ValueError(f"dates must be FIRST/LAST, the earlier day first, got {dates!r}")
    return bool(first <= acquired_at(item).date() <= last)
