"""Where geometries lie on a map: their shapes in its CRS, their cells, and the share that it covers."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import Array
from rsbackbones.embed.geometry_table import listed
from rsbackbones.embed.lattice import Block

# Where a polygon is projected, an edge is off by so much of a cell at most; so many times edges are divided,
# into so many of a polygon at most.
_OFF, _ROUNDS, _EDGES = 0.01, 8, 2**19


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


def map_bounds(grid: Grid) -> tuple[float, float, float, float]:
    """Return west, south, east and north of a map in its CRS."""
    (west, north), (east, south) = grid.position(0, 0), grid.position(grid.width, grid.height)
    return west, south, east, north


def place_geometries(frame: Any, grid: Grid) -> Any:
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


def inside_share(placed: Any, grid: Grid) -> Array:
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
    west, south, east, north = map_bounds(grid)
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
