"""STAC GeoParquet: a row an item, with its properties as columns (github.com/stac-utils/stac-geoparquet)."""

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from rsbackbones.embed.sources.stac_item import Bounds

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
# So many rows are decoded at a time.
_ROWS = 1024


def read_table(
    path: Path, days: tuple[date, date] | None = None, bounds: Bounds | None = None
) -> list[dict[str, Any]]:
    """Return the items of a STAC GeoParquet, as dictionaries. Row groups without any are not read.

    Args:
        path: of the file.
        days: the first and the last day of the items in UTC; default: all.
        bounds: what the items touch; default: all.

    Raises:
        ImportError: pyarrow or geopandas is not installed.
        ValueError: it is none, or it has none of these items.
    """
    from rsbackbones.embed.geoparquet import require_geopandas

    require_geopandas()
    import pyarrow.dataset as ds
    from shapely.errors import ShapelyError

    try:
        table = ds.dataset(path, format="parquet")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    _check(table.schema, path)
    condition = _wanted(table.schema, days, bounds)
    batches = table.to_batches(filter=condition, batch_size=_ROWS, batch_readahead=1, fragment_readahead=1)
    try:
        items = [_item(row) for batch in batches for row in batch.to_pylist()]
    except (OSError, ShapelyError) as error:  # pages, or geometries
        raise ValueError(f"{path} cannot be read: {error}") from error
    if items:
        return items
    asked = ([f"is of the dates {days[0]}/{days[1]}"] if days else []) + (
        [f"touches the grid ({', '.join(f'{x:.2f}' for x in bounds)})"] if bounds else []
    )
    raise ValueError(
        f"no item of {path} {' and '.join(asked)}{_span(table)}" if asked else f"{path} is empty"
    )


def _check(schema: Any, path: Path) -> None:
    wanted = {"id": "string", "geometry": "binary", "assets": "struct"}
    if lacking := [name for name in wanted if name not in schema.names]:
        raise ValueError(f"{path} is no STAC GeoParquet: it has no column {', '.join(lacking)}")
    if not {"datetime", "start_datetime"} & set(schema.names):
        raise ValueError(f"{path} is no STAC GeoParquet: it has no column datetime or start_datetime")
    for name, what in wanted.items():
        if what not in str(kind := schema.field(name).type).partition("<")[0]:  # large_string, string_view
            raise ValueError(f"{path} is no STAC GeoParquet: {name} is {kind}, expected {what}")


def _wanted(schema: Any, days: tuple[date, date] | None, bounds: Bounds | None) -> Any:
    """Return the condition of the rows that can be wanted; ``None``: all."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    conditions = []
    if days and "datetime" in schema.names and pa.types.is_timestamp(kind := schema.field("datetime").type):
        ends = (days[0], days[1] + timedelta(days=1))
        first, after = (pa.scalar(datetime.combine(day, time(), UTC), kind) for day in ends)
        stated = ds.field("datetime")  # null where a range is stated
        conditions.append(stated.is_null() | ((stated >= first) & (stated < after)))
    parts = {"xmin", "ymin", "xmax", "ymax"}
    if bounds and "bbox" in schema.names and pa.types.is_struct(kind := schema.field("bbox").type):
        west, south, east, north = bounds
        if parts <= {kind.field(i).name for i in range(kind.num_fields)}:
            xmin, ymin, xmax, ymax = (ds.field("bbox", name) for name in ("xmin", "ymin", "xmax", "ymax"))
            inside = (ymin <= north) & (ymax >= south)
            if -180 <= west <= east <= 180:  # else all longitudes
                across = (xmin > xmax) | (xmin < -180) | (xmax > 180)  # the antimeridian
                inside &= across | ((xmin <= east) & (xmax >= west))
            conditions.append(xmin.is_null() | inside)
    if not conditions:
        return None
    return conditions[0] & conditions[1] if conditions[1:] else conditions[0]


def _span(table: Any) -> str:
    """Return which dates a table has, for messages."""
    import pyarrow.compute as pc

    if "datetime" not in table.schema.names:
        return ""
    found = pc.min_max(table.to_table(columns=["datetime"])["datetime"]).as_py()
    ends = [str(found[name])[:10] for name in ("min", "max")]
    return f": those given are of {ends[0]}/{ends[1]}"


def _item(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as an item. Structs of a table have all fields, so that what is null is absent."""
    stated = {name: _plain(value) for name, value in row.items() if value is not None}
    box = stated.get("bbox")
    if isinstance(box, dict):
        names = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
        stated["bbox"] = [box[name] for name in names if name in box]
    properties = {name: value for name, value in stated.items() if name not in _OF_ITEM}
    if isinstance(code := properties.get("proj:epsg"), float):  # pandas knows no null among integers
        properties["proj:epsg"] = int(code)
    return {
        "type": "Feature", "stac_version": "1.1.0", "stac_extensions": [], "links": [], "geometry": None,
        "assets": {},
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
