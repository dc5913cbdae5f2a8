"""Tables of embeddings with their places: GeoParquet 1.1, by geopandas, with a bounding box column.

The columns are those that torchgeo's ``ClayEmbeddings`` (from 0.9) reads: ``geometry``, ``datetime`` and
``embedding``.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from rsbackbones.data.product_names import parse_acquisition_time
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import Array

# Rows of a row group: so many vectors are in memory at a time.
ROWS = 8192
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


def arrow_table(frame: Any) -> Any:
    """Return a GeoDataFrame in EPSG:4326 as an Arrow table of GeoParquet 1.1, with a column ``bbox``."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, write_covering_bbox=True, schema_version="1.1.0")
    table = pq.read_table(buffer)
    # Without pandas' own record of the columns, which does not know those that are added.
    return table.replace_schema_metadata({b"geo": table.schema.metadata[b"geo"]})


def vector_column(vectors: Array) -> Any:
    """Return vectors [N, D] as an Arrow array of fixed-size lists."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1]
    )


def table_metadata(
    architecture: str,
    weights: str | None,
    parameters: str,
    bands: Mapping[str, Sequence[str]],
    more: Mapping[str, str],
) -> dict[bytes, bytes]:
    """Return what a table of embeddings states of the model that made them, and more."""
    from rsbackbones import __version__

    stated = {
        "rsbackbones": __version__,
        "model": architecture,
        "weights": weights or "",
        "parameters_sha256": parameters,
        "bands": json.dumps({m: list(b) for m, b in bands.items()}),
        **more,
    }
    return {key.encode(): value.encode() for key, value in stated.items()}


def write_geoparquet(
    file: BinaryIO,
    columns: Mapping[str, Any],
    geometry: Sequence[Any],
    vectors: Callable[[slice], Mapping[str, Array]],
    metadata: Mapping[bytes, bytes],
) -> None:
    """Write rows with their geometries (EPSG:4326), and vectors as fixed-size lists, part by part.

    Args:
        file: to write to.
        columns: by name the values of all rows.
        geometry: of all rows.
        vectors: returns those of some rows by column, [n, D]; so many are in memory at a time.
        metadata: of the file.
    """
    import geopandas
    import pyarrow.parquet as pq

    frame = geopandas.GeoDataFrame(dict(columns), geometry=list(geometry), crs="EPSG:4326")
    table, writer = arrow_table(frame), None
    table = table.replace_schema_metadata({**table.schema.metadata, **metadata})
    try:
        for start in range(0, max(len(table), 1), ROWS):
            part = table.slice(start, ROWS)
            for name, values in vectors(slice(start, start + len(part))).items():
                part = part.append_column(name, vector_column(values))
            writer = writer or pq.ParquetWriter(file, part.schema, compression="zstd")
            writer.write_table(part)
    finally:
        if writer is not None:
            writer.close()
