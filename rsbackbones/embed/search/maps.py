"""The maps of a store, one for each UTM zone and date, as the vectors that a search compares.

Zones overlap: near a border the same ground can have cells in two groups. A place counts once for each date,
in the group, of those with data there, the middle of whose zone is nearest in longitude. Where only one group
is opened, all its cells count.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.embed.lattice import Block
from rsbackbones.embed.quantize import Quantization
from rsbackbones.embed.search.example import Example
from rsbackbones.embed.search.layer import Indices, Layer
from rsbackbones.embed.store import PROVENANCE, groups_of, open_group, open_store
from rsbackbones.files.objects import Objects

Vectors = npt.NDArray[np.float32]


class Maps:
    """The maps of a store. A cell has a number: those of a map follow each other, row by row.

    Attributes:
        layers: the maps, by group and date.
        provenance: of each group; of a store without groups by ``None``.

    Args:
        place: the path or URL of the store.
        group: the only zone to open.
        date: the only day to open, ``2024-06-01``.

    Raises:
        ValueError: there is no store, or none of this group or date.
    """

    def __init__(self, place: str, *, group: str | None = None, date: str | None = None) -> None:
        self.place = place
        objects = Objects(place)
        groups: list[str | None] = [group] if group else [*groups_of(objects)] or [None]
        if unfinished := [g for g in groups if g and len(groups) > 1
                          and objects.within(g).get("zarr.json") is None]:  # fmt: skip
            raise ValueError(
                f"{place} has no features of {', '.join(unfinished)} yet; finish its job, or search one of "
                "the others: group (--group)"
            )
        stores = {name: open_store(place, group=name) for name in groups}
        self.provenance: dict[str | None, Any] = {n: store.attrs[PROVENANCE] for n, store in stores.items()}
        self._dated = any("time" in store["embeddings"].dims for store in stores.values())
        every = [layer for name, store in stores.items() for layer in _layers(place, name, store)]
        self.layers = [layer for layer in every if date in (None, layer.date)]
        if date is not None and not self._dated:
            raise ValueError(f"{place} has no time axis: leave out the date, {date}")
        if not self.layers:
            raise ValueError(f"{place} has embeddings of {_dates(every)}; choose a date (--date), got {date}")
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        self._first = np.cumsum([0, *sizes])

    @property
    def dim(self) -> int:
        """The number of features of a vector."""
        return self.layers[0].dim

    @property
    def count(self) -> int:
        """How many cells there are, those without data too."""
        return int(self._first[-1])

    @property
    def at_once(self) -> int:
        """How many cells are read at a time, at most: those of a shard."""
        return max(
            min(layer.shard, layer.shape[0]) * min(layer.shard, layer.shape[1]) for layer in self.layers
        )

    def parts(
        self, box: tuple[float, float, float, float] | None = None, date: str | None = None
    ) -> Iterator[tuple[Indices, Vectors]]:
        """Yield the numbers [N] and the vectors [N, D] of cells that count, shard by shard.

        Args:
            box: west, south, east and north in degrees, in which the centers of cells lie; default: all.
            date: the only day that counts.
        """
        for i in self._of_date(date):
            first, layer = int(self._first[i]), self.layers[i]
            for block in layer.blocks(None if box is None else layer.touched(*box)):
                vectors = layer.read(block)
                rows, columns = np.nonzero(np.isfinite(vectors).all(axis=-1))
                counts = self._counts(layer, block, rows + block.top, columns + block.left)
                if box is not None:
                    lon, lat = layer.degrees(rows + block.top, columns + block.left)
                    counts &= (lon >= box[0]) & (lat >= box[1]) & (lon <= box[2]) & (lat <= box[3])
                rows, columns = rows[counts], columns[counts]
                if len(rows):
                    numbers = first + (rows + block.top) * layer.shape[1] + columns + block.left
                    yield numbers, vectors[rows, columns]

    def example_at(self, lon: float, lat: float, date: str | None = None) -> Example:
        """Return the vector [D] of a place in degrees: the mean of its dates that have data.

        Args:
            lon, lat: the place.
            date: the only day that counts.

        Raises:
            ValueError: the place lies outside, or has no data; or there is no such date.
        """
        found: dict[str | None, Vectors] = {}
        zones: dict[str, None] = {}
        here = self._at(lon, lat, self._of_date(date))
        for layer, row, column in here:
            if layer.date not in found:
                vector = layer.read(Block(row, column, row + 1, column + 1))[0, 0]
                if np.isfinite(vector).all():
                    found[layer.date] = vector
                    zones[layer.group or ""] = None
        if not here:
            raise ValueError(f"{lon}, {lat} (degrees east and north) lies outside of {self._extent}")
        if not found:
            raise ValueError(f"{self.place} has no data at {lon}, {lat}" + (f" on {date}" if date else ""))
        where: list[str | None] = [zone for zone in zones if zone]
        if self._dated:
            where.append(next(iter(found)) if len(found) == 1 else f"the mean of {len(found)} dates")
        mean: Array = np.mean(list(found.values()), axis=0)
        return Example(mean, ", ".join(map(str, where)))

    def example_in(self, box: tuple[float, float, float, float], date: str | None = None) -> Example:
        """Return the mean vector [D] of cells whose centers lie in a box in degrees, over all dates; of a box
        within a cell that of this cell.

        Raises:
            ValueError: there is no cell with data, or no such date.
        """
        total, count = np.zeros(self.dim), 0
        for _, vectors in self.parts(box, date):
            total += vectors.sum(axis=0, dtype=np.float64)
            count += len(vectors)
        if count:
            return Example(total / count, f"the mean of {count} cells" if count > 1 else "1 cell")
        west, south, east, north = box
        try:
            return self.example_at((west + east) / 2, (south + north) / 2, date)
        except ValueError as error:
            raise ValueError(
                f"no cell of {self._extent} with data lies in {west}, {south}, {east}, {north}"
            ) from error

    def locate(self, numbers: Indices) -> tuple[Indices, Indices, Indices]:
        """Return for cells by their numbers [N] the place of their map in ``layers``, row and column."""
        of = np.searchsorted(self._first, numbers, "right") - 1
        widths = np.array([layer.shape[1] for layer in self.layers])
        rows, columns = np.divmod(numbers - self._first[of], widths[of])
        return of, rows, columns

    def degrees(self, numbers: Indices) -> tuple[Array, Array]:
        """Return longitude and latitude of the centers of cells by their numbers [N]."""
        of, rows, columns = self.locate(numbers)
        lon, lat = np.zeros(len(numbers)), np.zeros(len(numbers))
        for i in np.unique(of):
            here = of == i
            lon[here], lat[here] = self.layers[i].degrees(rows[here], columns[here])
        return lon, lat

    def outlines(self, numbers: Indices) -> list[Any]:
        """Return the outlines of cells by their numbers in degrees, as polygons of shapely."""
        return [
            self.layers[i].geobox[r : r + 1, c : c + 1].extent.to_crs("EPSG:4326").geom
            for i, r, c in zip(*(x.tolist() for x in self.locate(numbers)), strict=True)
        ]

    def names(self, numbers: Indices) -> list[str]:
        """Return group and date of cells [N], as far as the store has them."""
        return [self.layers[i].name for i in self.locate(numbers)[0]]

    def columns(self, numbers: Indices) -> dict[str, Any]:
        """Return what a table says of cells: row, column, and where the store has them group and date."""
        of, rows, columns = self.locate(numbers)
        found: dict[str, Any] = {"row": rows, "column": columns}
        if self.layers[0].group is not None:
            found["group"] = [self.layers[i].group for i in of]
        if self._dated:
            found["date"] = [self.layers[i].date for i in of]
        return found

    def digest(self) -> str:
        """Return a digest of the store's facts, and of names and sizes of its files."""
        listed = sorted(f"{key} {size}" for key, size in Objects(self.place).sizes())
        stated = json.dumps([*self.provenance.values()], sort_keys=True)
        return hashlib.sha256("\n".join([*listed, stated]).encode()).hexdigest()

    @property
    def _extent(self) -> str:
        """The store with the extent of its groups, for messages."""
        of = {layer.group: layer.bounds for layer in self.layers}
        stated = [
            f"{group + ' ' if group else ''}{','.join(f'{degrees:.5f}' for degrees in bounds)}"
            for group, bounds in of.items()
        ]
        return f"{self.place} (west, south, east, north: {'; '.join(stated)})"

    def _of_date(self, date: str | None) -> list[int]:
        """Return the places of the maps of a date in ``layers``; ``None``: of all."""
        found = [i for i, layer in enumerate(self.layers) if date in (None, layer.date)]
        if found:
            return found
        if not self._dated:
            raise ValueError(f"{self.place} has no time axis: leave out the date of the example, {date}")
        raise ValueError(
            f"examples are of {_dates(self.layers)}; choose one of these dates (--at-date), got {date}"
        )

    def _at(self, lon: float, lat: float, layers: list[int]) -> list[tuple[Layer, int, int]]:
        """Return the maps that cover a place, and its cell there; those first whose cells count."""
        found = []
        place = np.array([lon]), np.array([lat])
        for i in layers:
            rows, columns, inside = self.layers[i].cells(*place)
            if inside[0]:
                away = float(self.layers[i].from_middle(*place)[0]) if self.layers[i].group else 0.0
                found.append((away, i, int(rows[0]), int(columns[0])))
        return [(self.layers[i], row, column) for _, i, row, column in sorted(found)]

    def _counts(self, layer: Layer, block: Block, rows: Indices, columns: Indices) -> npt.NDArray[np.bool_]:
        """Tell which cells [N] of a block count: those that no map of another group and the same date has
        data for which comes first.
        """
        counts = np.ones(len(rows), np.bool_)
        mine = self.layers.index(layer)
        others = [
            (i, other) for i, other in enumerate(self.layers)
            if other.date == layer.date and other is not layer and _may_touch(layer, block, other)
        ]  # fmt: skip
        if not others or not len(rows):
            return counts
        lon, lat = layer.degrees(rows, columns)
        own = layer.from_middle(lon, lat)
        for i, other in others:
            there, across, inside = other.cells(lon, lat)
            away = other.from_middle(lon, lat)
            some = np.flatnonzero(inside & ((away < own) | ((away == own) & (i < mine))))
            if len(some):
                counts[some] &= ~other.has_data(there[some], across[some])
        return counts


def _layers(place: str, group: str | None, store: Any) -> list[Layer]:
    data, stated, stored = store["embeddings"], store.attrs[PROVENANCE], open_group(place, group=group)
    quantization, shard = Quantization.from_json(stated["quantization"]), int(stated["shard"])
    if "time" not in data.dims:
        return [Layer(group, None, data, stored, quantization, shard, None)]
    days = np.datetime_as_string(data["time"].values, "D").tolist()
    return [
        Layer(group, day, data.isel(time=i), stored, quantization, shard, i) for i, day in enumerate(days)
    ]


def _dates(layers: list[Layer]) -> str:
    return ", ".join(sorted({str(layer.date) for layer in layers}))


def _may_touch(layer: Layer, block: Block, other: Layer) -> bool:
    """Tell whether a block of a map can share ground with another map: whether its edge surrounds cells."""
    top, left, bottom, right = block
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    edge = (
        np.concatenate([rows, rows, columns * 0 + top, columns * 0 + bottom - 1]),
        np.concatenate([rows * 0 + left, rows * 0 + right - 1, columns, columns]),
    )
    west, south, east, north = _around(*layer.degrees(*edge))
    touched = other.touched(west, south, east, north)
    return min(touched.shape) > 0


def _around(lon: Array, lat: Array) -> tuple[float, float, float, float]:
    return float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())
