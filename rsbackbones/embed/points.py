"""Geometries to embed: which cells of a map are theirs, and which are computed together.

A point has the cell that it lies in. A polygon has the cells whose centers lie in it or on its outline; where
there is none, it has the cell in which its representative point lies (of shapely, always within it). Edges
are straight in the CRS of the user. The embedding is the mean over those of its cells that have data.

==================  =========================================================================================
``id``              of the user's column of this name, else the index of the GeoDataFrame, or the row number
the user's columns  as they are
``geometry``        in EPSG:4326
``crs``             of the source, of several UTM zones that of the zone from which it is embedded
``datetime``        of the source, if it has one; ``start_datetime`` and ``end_datetime`` are of all its dates
``source``          the rasters that the geometry's cells touch, the ids of STAC items, or the URL of an array
``cells``           how many cells of the map are the geometry's
``valid_share``     the share of them that have data; 0 without any cell
``inside_share``    the share of its area that the map covers; of a point 0 or 1
``embedding``       [D] float32; NaN without a cell with data
==================  =========================================================================================
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import Array
from rsbackbones.embed.counted import counted
from rsbackbones.embed.geoparquet import arrow_table, require_geopandas
from rsbackbones.embed.lattice import Block
from rsbackbones.embed.utm import degrees_from_zone
from rsbackbones.files.objects import Objects

ON_MISSING = ("fail", "nan")
# So many geometries at most are one task, and one part file.
GROUP = 256
# The values of so many pixels at most are checked before the first group.
CHECKED_PIXELS = 2**18
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
# Where a polygon is projected, an edge is off by so much of a cell at most; so many times edges are divided,
# into so many of a polygon at most.
_OFF, _ROUNDS, _EDGES = 0.01, 8, 2**19


@dataclass(frozen=True)
class Points:
    """Geometries in groups. It can be pickled, without the table, which tasks get group by group.

    Attributes:
        facts: what decides the result, as JSON takes it.
        on_missing: one of ``ON_MISSING``.
        table: of Arrow, in the order of groups: the user's columns, ``id``, ``geometry``, ``inside_share``
            and ``placed``.
    """

    facts: dict[str, Any]
    on_missing: str
    table: Any = None

    @staticmethod
    def of(given: Any, grid: Grid, on_missing: str) -> "Points":
        """Take a GeoDataFrame, or the path of a file of geometries, to be embedded on a grid of cells.

        Raises:
            ImportError: geopandas is not installed.
            ValueError: no geometry, one without a CRS, of another kind, empty or invalid; a polygon that
                reaches beyond the CRS of the grid; a column of a name that the result needs, or of values
                that Parquet does not take; with ``on_missing="fail"`` geometries outside of the grid.
        """
        return Points.of_zones(given, {"": grid}, on_missing)[""]

    @staticmethod
    def of_zones(
        given: Any,
        grids: Mapping[str, Grid],
        on_missing: str,
        footprints: Mapping[str, Sequence[Any]] | None = None,
    ) -> "dict[str, Points]":
        """Share geometries out among the grids of UTM zones, by ``utm32`` or ``utm32s``; errors as of ``of``.

        A geometry is of the zone whose map covers most of it. Where maps cover the same of it, it is of a
        zone that has a footprint (polygons of shapely in EPSG:4326) around its centroid, if one has; of these
        of the zone whose central meridian is nearest to the centroid, on the side of the equator on which
        this lies. Zones without a geometry are left out.
        """
        import shapely

        require_geopandas()
        frame = _named(_read(given))
        _check(frame)
        placed = [_placed(frame, grid) for grid in grids.values()]
        shares = np.stack([_inside(one, grid) for one, grid in zip(placed, grids.values(), strict=True)])
        frame = frame.to_crs("EPSG:4326")
        zones = _zones(frame.geometry, shares, list(grids), footprints or {})
        inside = np.take_along_axis(shares, zones[None], 0)[0]
        if on_missing == "fail" and not inside.all():
            raise ValueError(
                f"outside of the source: {listed(frame['id'][inside == 0])}; leave these out, or keep them "
                "with embeddings of NaN: on_missing='nan' (--on-missing nan)"
            )
        frame = frame.assign(inside_share=inside)
        shapes = np.stack([np.asarray(one.array) for one in placed])
        frame[PLACED] = shapely.to_wkb(np.take_along_axis(shapes, zones[None], 0)[0])
        rows = [_in_groups(placed[i], inside, np.flatnonzero(zones == i), grid)
                for i, grid in enumerate(grids.values())]  # fmt: skip
        try:
            table = arrow_table(frame.iloc[np.concatenate(rows)])
        except (ValueError, TypeError, NotImplementedError) as error:  # of pandas or pyarrow, by type
            raise ValueError(
                f"the columns of the geometries do not go to GeoParquet: {error}; give each a name and "
                "values of one type, or leave it out"
            ) from error
        first, found = 0, {}
        for name, own in zip(grids, rows, strict=True):
            if len(own):
                bounds = frame.geometry.iloc[own].total_bounds
                found[name] = Points._of_table(table.slice(first, len(own)), bounds, on_missing)
            first += len(own)
        return found

    @staticmethod
    def _of_table(table: Any, bounds: Array, on_missing: str) -> "Points":
        facts = {
            "count": len(table),
            "group": GROUP,
            "columns": table.column_names,
            "bounds": list(map(float, bounds)),
            "sha256": _digest(table),
        }
        return Points(facts, on_missing, table)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return -(-int(self.facts["count"]) // int(self.facts["group"]))

    def place_of(self, group: int) -> str:
        """Return the geometries of a group, for messages."""
        return listed(self._part(group)["id"].to_pylist())

    def write(self, records: Objects) -> None:
        """Write what tasks read, but for the groups that are there."""
        import pyarrow.parquet as pq

        there = set(records.keys("groups/"))
        for group in range(self.groups):
            if _key(group) not in there:
                buffer = io.BytesIO()
                pq.write_table(self._part(group), buffer)
                records.put(_key(group), buffer.getvalue())

    @staticmethod
    def read(records: Objects, group: int) -> tuple[Any, list[Any]]:
        """Return the table of a group without ``placed``, and this as shapes in the CRS of the source."""
        import pyarrow.parquet as pq
        import shapely

        data = records.get(_key(group))
        if data is None:
            raise ValueError(f"{records.place} lacks the geometries of group {group}: plan the job again")
        table = pq.read_table(io.BytesIO(data))
        return table.drop_columns([PLACED]), list(shapely.from_wkb(table[PLACED].to_numpy()))

    def discard(self, records: Objects) -> None:
        """Delete what tasks read."""
        for key in list(records.keys("groups/")):
            records.delete(key)

    def _part(self, group: int) -> Any:
        assert self.table is not None, "the geometries stay with the process that planned the job"
        return self.table.slice(group * self.facts["group"], self.facts["group"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the table behind."""
        return {**self.__dict__, "table": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what :meth:`__getstate__` kept."""
        self.__dict__.update(state)


class Cells:
    """The cells of one geometry on a grid of cells.

    Args:
        shape: in the CRS of the grid.
        grid: of cells, north up.
        side: of the blocks that cells are asked for by, in cells.
    """

    def __init__(self, shape: Any, grid: Grid, side: int) -> None:
        import shapely

        self._grid, self._side = grid, side
        self._shape = shape
        shapely.prepare(shape)
        if shape.geom_type == "Point" or not any(len(self.within(block)[0]) for block in self.blocks):
            self._shape = shape.representative_point()

    @property
    def blocks(self) -> Iterator[Block]:
        """The blocks of the grid in which its cells can lie, in rows."""
        west, south, east, north = self._shape.bounds
        (top, left), (bottom, right) = self._cell(west, north), self._cell(east, south)
        side, height, width = self._side, self._grid.height, self._grid.width
        for row in range(max(top, 0) // side * side, min(bottom + 1, height), side):
            for column in range(max(left, 0) // side * side, min(right + 1, width), side):
                yield Block(row, column, min(row + side, height), min(column + side, width))

    def within(self, block: Block) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return rows and columns of its cells in a block."""
        import shapely

        west, south, east, north = self._shape.bounds
        (top, left), (bottom, right) = self._cell(west, north), self._cell(east, south)
        rows = np.arange(max(top, block.top), min(bottom + 1, block.bottom))
        columns = np.arange(max(left, block.left), min(right + 1, block.right))
        if self._shape.geom_type != "Point":
            t = self._grid.transform
            x, y = np.meshgrid(t.c + t.a * (columns + 0.5), t.f + t.e * (rows + 0.5))
            down, across = np.nonzero(shapely.intersects_xy(self._shape, x, y))
            return rows[down], columns[across]
        return (rows, columns) if len(rows) and len(columns) else (rows[:0], columns[:0])

    def _cell(self, x: float, y: float) -> tuple[int, int]:
        t = self._grid.transform
        return int(np.floor((y - t.f) / t.e)), int(np.floor((x - t.c) / t.a))


def listed(ids: Any) -> str:
    """Return geometries by their ids, for messages."""
    ids = list(ids)
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{counted(len(ids), 'geometry', 'geometries')} ({', '.join(map(str, ids[:_NAMED]))}{more})"


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


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    (west, north), (east, south) = grid.position(0, 0), grid.position(grid.width, grid.height)
    return west, south, east, north


def _placed(frame: Any, grid: Grid) -> Any:
    """Return geometries in the CRS of a grid. Edges that are straight in theirs are curves there: long ones
    get vertices between, so that none is off by more than ``_OFF`` of a cell in its middle.

    Raises:
        ValueError: one reaches so far that its edges have no end there.
    """
    import geopandas
    import shapely
    from pyproj import Transformer

    geometry, target = frame.geometry, grid.crs.to_wkt()
    project = Transformer.from_crs(geometry.crs, target, always_xy=True).transform
    most = _OFF * min(abs(grid.transform.a), abs(grid.transform.e))
    shapes = np.array(geometry.array)
    for _ in range(_ROUNDS):
        length = _longest_edges(shapes, project, most)
        if not (bent := np.isfinite(length)).any():
            break
        far = shapely.length(shapes) / length > _EDGES
        if far.any():
            raise ValueError(
                f"too large for {grid.crs}, the CRS of the source: {listed(frame['id'][far])}; cut them to "
                "the surroundings of the source (frame.clip)"
            )
        shapes[bent] = shapely.segmentize(shapes[bent], length[bent])
    return geopandas.GeoSeries(shapes, crs=geometry.crs).to_crs(target)


def _longest_edges(shapes: Array, project: Callable[..., Any], most: float) -> Array:
    """Return how long the edges of each polygon may be; infinity: they can stay as they are."""
    import shapely

    parts, of_part = shapely.get_parts(shapes, return_index=True)
    rings, of_ring = shapely.get_rings(parts, return_index=True)  # of a point none
    longest = np.full(len(shapes), np.inf)
    if not len(rings):
        return longest
    places, of_vertex = shapely.get_coordinates(rings, return_index=True)
    one, other = places[:-1], places[1:]
    start, end, middle = (np.stack(project(*at.T)) for at in (one, other, (one + other) / 2))
    with np.errstate(invalid="ignore"):  # infinity: where the CRS does not reach
        off = np.hypot(*(middle - (start + end) / 2))
    bent = (of_vertex[1:] == of_vertex[:-1]) & np.isfinite(off) & (off > most)
    pieces = np.ceil(np.sqrt(off[bent] / most))  # of half the length, an edge is off by a quarter
    shape = of_part[of_ring[of_vertex[1:]]]
    np.minimum.at(longest, shape[bent], np.hypot(*(other - one)[bent].T) / pieces)
    return longest


def _zones(
    geometry: Any, shares: Array, names: Sequence[str], footprints: Mapping[str, Sequence[Any]]
) -> npt.NDArray[np.int64]:
    """Return the place of the zone of each geometry (EPSG:4326), by the shares [zones, N] that maps cover."""
    import shapely

    if len(names) == 1:
        return np.zeros(len(geometry), np.int64)
    centers = shapely.centroid(np.asarray(geometry.array))
    lon, lat = shapely.get_x(centers), shapely.get_y(centers)
    apart = np.stack([degrees_from_zone(name, lon, lat) for name in names])
    chosen = shares >= shares.max(axis=0) - 1e-9
    seen = chosen & np.stack([_covered(footprints.get(name, ()), lon, lat) for name in names])
    apart[~np.where(seen.any(axis=0), seen, chosen)] = np.inf
    return np.asarray(np.argmin(apart, axis=0), np.int64)


def _covered(footprints: Sequence[Any], lon: Array, lat: Array) -> npt.NDArray[np.bool_]:
    """Return which points lie in a footprint, whose longitudes may be beyond 180 degrees."""
    import shapely

    tree, found = shapely.STRtree(footprints), np.zeros(len(lon), bool)
    for turn in (-360, 0, 360):
        found[tree.query(shapely.points(lon + turn, lat), predicate="intersects")[0]] = True
    return found


def _in_groups(placed: Any, inside: Array, rows: npt.NDArray[np.int64], grid: Grid) -> npt.NDArray[np.int64]:
    """Return rows in the order of groups: neighbors on the curve are neighbors on the map, and a group needs
    few windows. Those outside of the map are last.
    """
    near = rows[inside[rows] > 0]
    if len(near):
        along = placed.iloc[near].hilbert_distance(total_bounds=_bounds(grid))
        near = near[np.argsort(along.to_numpy(), kind="stable")]
    return np.concatenate([near, rows[inside[rows] == 0]])


def _inside(placed: Any, grid: Grid) -> Array:
    """Return the share of each geometry that lies on the map."""
    import shapely

    shapes = np.asarray(placed.array)
    share = np.zeros(len(shapes))
    there = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    is_point = shapely.get_type_id(shapes) == 0
    t, some = grid.transform, is_point & there
    x, y = shapely.get_x(shapes[some]), shapely.get_y(shapes[some])
    row, column = np.floor((y - t.f) / t.e), np.floor((x - t.c) / t.a)
    share[some] = (row >= 0) & (row < grid.height) & (column >= 0) & (column < grid.width)
    west, south, east, north = _bounds(grid)
    share[~is_point & there] = 1
    low, high = np.split(shapely.bounds(shapes), 2, axis=1)
    across = (low < (west, south)).any(axis=1) | (high > (east, north)).any(axis=1)
    some = ~is_point & there & across
    # Parts that touch in the CRS of the user may overlap a little in that of the grid.
    wholes = shapes[some]
    bad = ~shapely.is_valid(wholes)
    wholes[bad] = shapely.make_valid(wholes[bad])
    parts = shapely.intersection(wholes, shapely.box(west, south, east, north))
    share[some] = shapely.area(parts) / shapely.area(wholes)
    return share


def _digest(table: Any) -> str:
    """Return what tells a table from another, whatever wrote it."""
    digest = hashlib.sha256(repr([(field.name, str(field.type)) for field in table.schema]).encode())
    for start in range(0, len(table), GROUP):
        for column in table.slice(start, GROUP).columns:
            digest.update(repr(column.to_pylist()).encode())
    return digest.hexdigest()


def _key(group: int) -> str:
    return f"groups/{group:08d}.parquet"
