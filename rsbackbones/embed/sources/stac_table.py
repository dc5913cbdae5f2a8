"""STAC GeoParquet: a row an item, with its properties as columns (github.com/stac-utils/stac-geoparquet)."""

from datetime import date, datetime
from pathlib import Path
from typing import Any

# Columns that are no properties.
_OF_ITEM = (
    "type",
    "stac_version",
    "stac_extensions",
    "id",
    "geometry",
    "bbox",
    "links",
    "assets",
    "collection",
)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the items of a STAC GeoParquet, as dictionaries.

    Raises:
        ImportError: pyarrow or geopandas is not installed.
        ValueError: it is none.
    """
    from rsbackbones.embed.geoparquet import require_geopandas

    require_geopandas()
    import pyarrow.parquet as pq

    lacking = [name for name in ("id", "geometry", "assets") if name not in pq.read_schema(path).names]
    if lacking:
        raise ValueError(f"{path} is no STAC GeoParquet: it has no column {', '.join(lacking)}")
    return [_item(row) for row in pq.read_table(path).to_pylist()]


def _item(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as an item. Structs of a table have all fields, so that what is null is absent."""
    stated = {name: _plain(value) for name, value in row.items() if value is not None}
    box = stated["bbox"]
    if isinstance(box, dict):
        names = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
        stated["bbox"] = [box[name] for name in names if name in box]
    properties = {name: value for name, value in stated.items() if name not in _OF_ITEM}
    return {
        "type": "Feature", "stac_version": "1.1.0", "stac_extensions": [], "links": [],
        **{name: value for name, value in stated.items() if name in _OF_ITEM},
        "properties": {"datetime": None, **properties},
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: geometries from WKB, times as text."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):
        import shapely

        return shapely.geometry.mapping(shapely.from_wkb(value))
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value
