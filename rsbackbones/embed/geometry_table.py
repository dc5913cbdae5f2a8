"""A user's table of geometries: read, named and checked."""

import os
from pathlib import Path
from typing import Any

from rsbackbones.embed.counted import counted

# The column of the shapes in the CRS of the source; it goes to the tasks, and not into the result.
PLACED = "placed"
# Columns of the result, which the user's may not be named as.
_OWN = (
    "geometry", "crs", "datetime", "start_datetime", "end_datetime", "source", "cells", "valid_share",
    "inside_share", "embedding", "bbox", PLACED,
)  # fmt: skip
_KINDS = ("Point", "Polygon", "MultiPolygon")
# So many are named in an error.
_NAMED = 5


def listed(ids: Any) -> str:
    """Return geometries by their ids, for messages."""
    ids = list(ids)
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{counted(len(ids), 'geometry', 'geometries')} ({', '.join(map(str, ids[:_NAMED]))}{more})"


def read_geometries(given: Any) -> Any:
    """Return a GeoDataFrame of geometries, with their ids, from one or from the path of a file.

    Raises:
        ValueError: it is neither, or its ids, columns or geometries cannot be taken; they are named.
    """
    frame = _named(_read(given))
    _check(frame)
    return frame


def _read(given: Any) -> Any:
    import geopandas

    if isinstance(given, geopandas.GeoDataFrame):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise ValueError(f"points must be a GeoDataFrame or the path of a file, got {type(given).__name__}")
    path = Path(given).expanduser()
    if not path.exists():
        raise ValueError(f"there is no file {path} of geometries")
    try:
        if path.suffix.lower() in (".parquet", ".geoparquet"):
            return geopandas.read_parquet(path)
        layers = geopandas.list_layers(path)
        layers = layers["name"][layers["geometry_type"].notna()].tolist()
        if len(layers) > 1:
            raise ValueError(
                f"it has the layers {', '.join(layers)}; write one into a file: ogr2ogr one.gpkg {path} "
                f"{layers[0]}"
            )
        return geopandas.read_file(path)
    except Exception as error:  # of pyogrio, pyarrow or geopandas, by format
        raise ValueError(f"cannot read geometries from {path}: {error}") from error


def _named(frame: Any) -> Any:
    """Return the frame with the geometry in a column of this name, and an ``id``."""
    geometry = frame.active_geometry_name
    if geometry is None:
        raise ValueError("the GeoDataFrame has no active geometry (set_geometry)")
    if taken := sorted(str(name) for name in frame.columns if name in _OWN and name != geometry):
        raise ValueError(f"the columns {', '.join(taken)} have names that the result needs; rename them")
    if geometry != "geometry":
        frame = frame.rename_geometry("geometry")
    if "id" not in frame:
        if frame.index.nlevels > 1:
            raise ValueError("the GeoDataFrame has an index of several levels and no column id; make one")
        frame = frame.assign(id=frame.index)
    frame = frame.reset_index(drop=True)
    return frame[["id", *(name for name in frame.columns if name != "id")]]


def _check(frame: Any) -> None:
    if not len(frame):
        raise ValueError("there is no geometry")
    if frame.crs is None:
        raise ValueError("the geometries have no CRS; state it: frame.set_crs('EPSG:4326')")
    absent = frame.geometry.isna() | frame.geometry.is_empty
    if absent.any():
        raise ValueError(f"empty: {listed(frame['id'][absent])}; leave these out")
    kinds = frame.geometry.geom_type
    if (other := ~kinds.isin(_KINDS)).any():
        raise ValueError(
            f"{', '.join(sorted(set(kinds[other])))}: {listed(frame['id'][other])}; embeddings are of "
            f"{', '.join(_KINDS)}: make polygons of lines (frame.buffer), and rows of parts (frame.explode)"
        )
    if (invalid := ~frame.geometry.is_valid).any():
        raise ValueError(
            f"no valid polygons: {listed(frame['id'][invalid])}; repair them: frame.make_valid()"
        )
