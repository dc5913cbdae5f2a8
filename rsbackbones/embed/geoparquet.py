"""Tables of embeddings with their places: GeoParquet 1.1, by geopandas, with a bounding box column.

The columns are those that torchgeo's ``ClayEmbeddings`` (from 0.9) reads: ``geometry``, ``datetime`` and
``embedding``.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from rsbackbones.data.product_names import parse_acquisition_time
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import Array

# Rows of a row group: so many vectors are in memory at a time.
_ROWS = 8192
# Points along each side of an outline before it is projected.
_SIDE_POINTS = 5


def require_geopandas() -> None:
    """Refuse where what writes GeoParquet is missing.

    Raises:
        ImportError: pyarrow or geopandas is not installed.
    """
    try:
        import geopandas  # noqa: F401
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "writing GeoParquet needs geopandas and pyarrow: pip install 'rsbackbones[geo]'"
        ) from error


def outline(grid: Grid) -> Any:
    """Return the outline of a grid in EPSG:4326 as a polygon of shapely; ``None``: it has no place."""
    from rasterio.warp import transform
    from shapely import Polygon

    if grid.crs is None or not grid.placed:
        return None
    along, (h, w) = np.linspace(0, 1, _SIDE_POINTS)[:-1], (grid.height, grid.width)
    ring = [(t * w, 0.0) for t in along] + [(w, t * h) for t in along]
    ring += [((1 - t) * w, h) for t in along] + [(0.0, (1 - t) * h) for t in along]
    xs, ys = zip(*(grid.position(column, row) for column, row in ring), strict=True)
    return Polygon(zip(*transform(grid.crs, "EPSG:4326", xs, ys), strict=True))


def acquired(names: Sequence[str]) -> Any:
    """Return the time in the first of some names of products that states one, ``None`` if none does."""
    for name in names:
        try:
            return parse_acquisition_time(name)
        except ValueError:
            continue
    return None


def write_geoparquet(
    file: BinaryIO,
    columns: Mapping[str, Any],
    geometry: Sequence[Any],
    vectors: Mapping[str, Array],
    metadata: Mapping[str, str],
) -> None:
    """Write rows with their geometries (EPSG:4326), and vectors [N, D] as fixed-size lists."""
    import geopandas
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = geopandas.GeoDataFrame(dict(columns), geometry=list(geometry), crs="EPSG:4326")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, write_covering_bbox=True, schema_version="1.1.0")
    table = pq.read_table(buffer)
    schema = table.schema
    for name, values in vectors.items():
        schema = schema.append(pa.field(name, pa.list_(pa.from_numpy_dtype(values.dtype), values.shape[1])))
    # Without pandas' own record of the columns, which does not know the vectors.
    kept = {b"geo": table.schema.metadata[b"geo"]} | {k.encode(): v.encode() for k, v in metadata.items()}
    schema = schema.with_metadata(kept)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, len(table), _ROWS):
            part = table.slice(start, _ROWS)
            lists = [
                pa.FixedSizeListArray.from_arrays(
                    pa.array(np.ascontiguousarray(values[start : start + _ROWS]).reshape(-1)), values.shape[1]
                )
                for values in vectors.values()
            ]
            writer.write_table(pa.table([*part.columns, *lists], schema=schema))
