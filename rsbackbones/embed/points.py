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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import Array
from rsbackbones.embed.geometry_cells import inside_share, map_bounds, place_geometries
from rsbackbones.embed.geometry_table import PLACED, listed, read_geometries
from rsbackbones.embed.geoparquet import arrow_table, require_geopandas
from rsbackbones.embed.utm import degrees_from_zone
from rsbackbones.files.objects import Objects

ON_MISSING = ("fail", "nan")
# So many geometries at most are one task, and one part file.
GROUP = 256
# The values of so many pixels at most are checked before the first group.
CHECKED_PIXELS = 2**18


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
        frame = read_geometries(given)
        placed = [place_geometries(frame, grid) for grid in grids.values()]
        shares = np.stack([inside_share(one, grid) for one, grid in zip(placed, grids.values(), strict=True)])
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
        along = placed.iloc[near].hilbert_distance(total_bounds=map_bounds(grid))
        near = near[np.argsort(along.to_numpy(), kind="stable")]
    return np.concatenate([near, rows[inside[rows] == 0]])


def _digest(table: Any) -> str:
    """Return what tells a table from another, whatever wrote it."""
    digest = hashlib.sha256(repr([(field.name, str(field.type)) for field in table.schema]).encode())
    for start in range(0, len(table), GROUP):
        for column in table.slice(start, GROUP).columns:
            digest.update(repr(column.to_pylist()).encode())
    return digest.hexdigest()


def _key(group: int) -> str:
    return f"groups/{group:08d}.parquet"
