"""A map of a store: the features of one UTM zone and one date."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.embed.lattice import Block
from rsbackbones.embed.quantize import Quantization
from rsbackbones.embed.store import read_block
from rsbackbones.embed.utm import degrees_from_zone

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layer:
    """One map of a store.

    Attributes:
        group: its UTM zone, ``utm32``; ``None`` of a store without groups.
        date: its day, ``2024-06-01``; ``None`` of a store without a time axis.
        data: the ``xarray.DataArray`` (band, y, x), lazy.
        stored: the zarr group that it is of.
        quantization: of the stored values.
        shard: the side of shards in cells.
        time: the place of the date on the time axis; ``None``: there is none.
    """

    group: str | None
    date: str | None
    data: Any
    stored: Any
    quantization: Quantization
    shard: int
    time: int | None

    @property
    def name(self) -> str:
        """Group and date, as far as the store has them: ``utm32, 2024-06-01``."""
        return ", ".join(part for part in (self.group, self.date) if part)

    @property
    def dim(self) -> int:
        """The number of features of a vector."""
        return int(self.data.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.data.shape[1]), int(self.data.shape[2])

    @cached_property
    def geobox(self) -> Any:
        """The ``odc.geo`` GeoBox."""
        import odc.geo.xr  # noqa: F401

        return self.data.odc.geobox

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north in degrees, of all its cells."""
        west, south, east, north = self.geobox.geographic_extent.boundingbox
        return west, south, east, north

    def blocks(self, within: Block | None = None) -> Iterator[Block]:
        """Yield the cells of each shard, in rows, cut to those within a block."""
        top, left, bottom, right = within or Block(0, 0, *self.shape)
        side = self.shard
        for y in range(top // side * side, bottom, side):
            for x in range(left // side * side, right, side):
                cut = Block(max(y, top), max(x, left), min(y + side, bottom), min(x + side, right))
                if min(cut.shape) > 0:
                    yield cut

    def read(self, block: Block) -> Array:
        """Return the vectors of a block, [h, w, D] float32, NaN without data."""
        return read_block(self.stored, block, self.quantization, self.time)

    def thinned(self, step: int) -> Array:
        """Return every ``step``-th vector in both directions, [h, w, D]."""
        rows, columns = (-(-n // step) for n in self.shape)
        made = np.full((rows, columns, self.dim), np.nan, np.float32)
        for block in self.blocks():
            first, begin = -block.top % step, -block.left % step
            part = self.read(block)[first::step, begin::step]
            r, c = (block.top + first) // step, (block.left + begin) // step
            made[r : r + part.shape[0], c : c + part.shape[1]] = part
        return made

    def has_data(self, rows: Indices, columns: Indices) -> npt.NDArray[np.bool_]:
        """Tell which cells [N] have data."""
        block = Block(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        valid = np.asarray(np.isfinite(self.read(block)).all(axis=-1))
        return np.asarray(valid[rows - block.top, columns - block.left])

    def degrees(self, rows: Indices, columns: Indices) -> tuple[Array, Array]:
        """Return longitude and latitude of the centers of cells [N]."""
        t = self.geobox.affine
        lon, lat = self._to_degrees.transform(t.c + t.a * (columns + 0.5), t.f + t.e * (rows + 0.5))
        return lon, lat

    def cells(self, lon: Array, lat: Array) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
        """Return rows and columns of the cells at places in degrees [N], and which lie on the map."""
        t, (height, width) = self.geobox.affine, self.shape
        x, y = self._to_degrees.transform(np.asarray(lon), np.asarray(lat), direction="INVERSE")
        row, column = np.floor((y - t.f) / t.e), np.floor((x - t.c) / t.a)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)  # not where PROJ gives inf
        rows, columns = (np.where(inside, n, 0).astype(np.int64) for n in (row, column))
        return rows, columns, inside

    def touched(self, west: float, south: float, east: float, north: float) -> Block:
        """Return the block of cells that a box in degrees can touch; it may be empty."""
        t, (height, width) = self.geobox.affine, self.shape
        x0, y0, x1, y1 = self._to_degrees.transform_bounds(
            west, south, east, north, densify_pts=200, direction="INVERSE"
        )
        edges = np.array([(y1 - t.f) / t.e, (x0 - t.c) / t.a, (y0 - t.f) / t.e, (x1 - t.c) / t.a])
        if not np.isfinite(edges).all():  # PROJ has no place for a box around half of the earth
            return Block(0, 0, height, width)
        top, left, bottom, right = np.floor(edges).astype(np.int64).tolist()
        return Block(max(top, 0), max(left, 0), min(bottom + 1, height), min(right + 1, width))

    def from_middle(self, lon: Array, lat: Array) -> Array:
        """Return how far places lie from the middle of the group's zone, in degrees."""
        assert self.group is not None
        return degrees_from_zone(self.group, lon, lat)

    @cached_property
    def _to_degrees(self) -> Any:
        from pyproj import Transformer

        return Transformer.from_crs(self.geobox.crs.to_wkt(), "EPSG:4326", always_xy=True)
