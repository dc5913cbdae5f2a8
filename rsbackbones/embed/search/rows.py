"""The rows of a GeoParquet table, as the vectors that a search compares. Embeddings are read part by part."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.embed.search.example import Example
from rsbackbones.embed.search.layer import Indices

# So many rows are in memory at a time.
_AT_ONCE = 65_536
# Meters of a degree of latitude, a bit less than there are.
_METERS = 110_000.0
# Columns of a table that a result keeps, where it has them.
_KEPT = ("id", "datetime", "start_datetime", "end_datetime", "source")
# Geometries whose distances differ by less, in meters, are at one place.
_SAME = 1e-3


class Rows:
    """The rows of a table, by their number.

    Attributes:
        provenance: what the table states, by ``None``.
        dim: the number of features of a vector.

    Args:
        place: the path of a file, or of a folder of parts.

    Raises:
        ValueError: there is none, or it holds no embeddings.
    """

    def __init__(self, place: str) -> None:
        import geopandas
        import pyarrow.parquet as pq

        if not Path(place).exists():
            raise ValueError(f"there is no table {place}")
        self.place = place
        held = pq.ParquetDataset(place)  # of a file, or a folder of parts
        if "embedding" not in held.schema.names:
            raise ValueError(f"{place} has no column embedding; it has {', '.join(held.schema.names)}")
        self._files: list[str] = list(held.files)
        self.provenance: dict[str | None, Any] = {
            None: {k.decode(): v.decode() for k, v in (held.schema.metadata or {}).items()
                   if k not in (b"geo", b"pandas")}
        }  # fmt: skip
        left = [n for n in held.schema.names if n != "bbox" and not n.startswith("embedding")]
        frame = geopandas.read_parquet(place, columns=left).reset_index(drop=True)
        self._frame = frame if frame.crs in (None, "EPSG:4326") else frame.to_crs("EPSG:4326")
        of_type = held.schema.field("embedding").type
        self.dim = getattr(of_type, "list_size", 0) or self._first_size()

    @property
    def count(self) -> int:
        """How many rows there are, those without data too."""
        return len(self._frame)

    @property
    def at_once(self) -> int:
        """How many rows are read at a time, at most."""
        return min(self.count, _AT_ONCE)

    def parts(self) -> Iterator[tuple[Indices, npt.NDArray[np.float32]]]:
        """Yield the numbers [N] and the vectors [N, D] of rows with data, part by part."""
        for start, vectors in self._batches():
            there = np.flatnonzero(np.isfinite(vectors).all(axis=1))
            if len(there):
                yield there + start, vectors[there]

    def example_at(self, lon: float, lat: float, within: float) -> Example:
        """Return the vector [D] of the geometry that covers a place in degrees, else of the nearest one; of
        several the mean of those with data.

        Args:
            lon, lat: the place.
            within: at most so many meters away.

        Raises:
            ValueError: none is so near, or none has data.
        """
        rows, meters = self._near(lon, lat, within)
        named = self._named(rows)
        if meters > within:
            raise ValueError(
                f"no geometry of {self.place} lies within {within:g} m of {lon}, {lat}; the nearest is "
                f"{named}, {_rounded(meters)} m away: name its place, or a distance (--within "
                f"{_rounded(meters + 1)})"
            )
        vectors = self._read(rows)
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if not len(vectors):
            raise ValueError(f"{self.place} has no data at {lon}, {lat} ({named})")
        mean: Array = vectors.mean(axis=0)
        return Example(mean, f"{named}, {_rounded(meters)} m away" if meters else named)

    def example_in(self, box: tuple[float, float, float, float]) -> Example:
        """Return the mean vector [D] of the geometries within a box in degrees.

        Raises:
            ValueError: none with data lies within.
        """
        import shapely

        shape = shapely.box(*box)
        index = self._frame.sindex
        rows = np.sort(index.query(shape, predicate="covers"))
        vectors = self._read(rows)
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if not len(vectors):
            reach = len(index.query(shape, predicate="intersects")) - len(rows)
            more = f"; {reach} that lie in it in part do not count" if reach else ""
            west, south, east, north = self._frame.total_bounds
            raise ValueError(
                f"no geometry of {self.place} with data lies within {', '.join(map(str, box))}{more} (all "
                f"lie within {west:.5f},{south:.5f},{east:.5f},{north:.5f})"
            )
        mean: Array = vectors.mean(axis=0)
        return Example(mean, f"the mean of {len(vectors)} geometries" if len(vectors) > 1 else "1 geometry")

    def degrees(self, numbers: Indices) -> tuple[Array, Array]:
        """Return longitude and latitude of the centers of rows [N]."""
        import shapely

        points = shapely.centroid(np.asarray(self._frame.geometry.array[numbers]))
        return shapely.get_x(points), shapely.get_y(points)

    def outlines(self, numbers: Indices) -> list[Any]:
        """Return the geometries of rows [N]."""
        return list(self._frame.geometry.iloc[numbers])

    def names(self, numbers: Indices) -> list[str]:
        """Return the ids of rows [N]; empty where the table has none."""
        return (
            [str(one) for one in self._frame["id"].iloc[numbers]]
            if "id" in self._frame
            else [""] * len(numbers)
        )

    def columns(self, numbers: Indices) -> dict[str, Any]:
        """Return what a table says of rows [N]: their number, and which they are by columns of the table."""
        kept = [name for name in _KEPT if name in self._frame]
        return {"row": numbers, **{name: self._frame[name].iloc[numbers].array for name in kept}}

    def digest(self) -> str:
        """Return a digest of names, sizes and footers of the files: columns, statistics, provenance."""
        digest = hashlib.sha256()
        for path in map(Path, self._files):
            with path.open("rb") as file:
                file.seek(-8, 2)
                footer = int.from_bytes(file.read(4), "little")
                file.seek(-8 - footer, 2)
                digest.update(json.dumps([path.name, path.stat().st_size]).encode() + file.read(footer))
        return digest.hexdigest()

    def _near(self, lon: float, lat: float, within: float) -> tuple[Indices, float]:
        """Return the rows at the smallest distance of a place, and how many meters it is."""
        import shapely

        index = self._frame.sindex
        covering = np.sort(index.query(shapely.Point(lon, lat), predicate="intersects"))
        if len(covering):
            return covering, 0.0
        north = within / _METERS
        east = north / max(np.cos(np.radians(min(abs(lat) + north, 90))), 1e-3)
        around = shapely.box(lon - east, lat - north, lon + east, lat + north)
        near = np.sort(index.query(around, predicate="intersects"))
        meters = self._meters(near, lon, lat)
        if not (meters <= within).any():
            near = np.arange(self.count)
            meters = self._meters(near, lon, lat)
        if not np.isfinite(meters).any():
            raise ValueError(f"no geometry of {self.place} has a place")
        smallest = float(np.nanmin(meters))
        return near[meters <= smallest + _SAME], smallest

    def _meters(self, rows: Indices, lon: float, lat: float) -> Array:
        """Return the distances of geometries [N] from a place, NaN of one without a place."""
        import shapely

        local = f"+proj=aeqd +lon_0={lon} +lat_0={lat} +datum=WGS84 +units=m"
        shapes = self._frame.geometry.iloc[rows].to_crs(local)
        meters: Array = shapes.distance(shapely.Point(0, 0)).to_numpy(np.float64)
        return meters

    def _named(self, rows: Indices) -> str:
        """Return what messages call rows."""
        name = f"id {self._frame['id'].iloc[rows[0]]}" if "id" in self._frame else f"row {rows[0]}"
        return name if len(rows) == 1 else f"{len(rows)} geometries ({name}, ...)"

    def _read(self, rows: Indices) -> npt.NDArray[np.float32]:
        """Return the vectors of rows [N, D] in ascending order, NaN without data."""
        found = [np.zeros((0, self.dim), np.float32)]
        for start, vectors in self._batches(rows):
            found.append(vectors[rows[(rows >= start) & (rows < start + len(vectors))] - start])
        return np.concatenate(found)

    def _batches(self, rows: Indices | None = None) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield the vectors [n, D] part by part with their first row; of row groups that hold some rows."""
        import pyarrow.parquet as pq

        start = 0
        for path in self._files:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    end = start + file.metadata.row_group(group).num_rows
                    if rows is None or ((rows >= start) & (rows < end)).any():
                        at = start
                        for batch in file.iter_batches(_AT_ONCE, row_groups=[group], columns=["embedding"]):
                            yield at, self._vectors(batch.column(0))
                            at += len(batch)
                    start = end

    def _vectors(self, column: Any) -> npt.NDArray[np.float32]:
        """Return lists of Arrow as vectors [n, D], NaN where there is none."""
        there = column.is_valid().to_numpy(zero_copy_only=False)
        values = column.flatten().to_numpy(zero_copy_only=False)
        if len(values) != there.sum() * self.dim:
            raise ValueError(f"{self.place} has embeddings of several lengths, {self.dim} and others")
        made = np.full((len(column), self.dim), np.nan, np.float32)
        made[there] = values.reshape(-1, self.dim)
        return made

    def _first_size(self) -> int:
        """Return the length of the first embedding."""
        import pyarrow.parquet as pq

        for path in self._files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_AT_ONCE, columns=["embedding"]):
                    sizes = batch.column(0).drop_null()
                    if len(sizes):
                        return len(sizes[0])
        raise ValueError(f"{self.place} holds no vector with data")


def _rounded(meters: float) -> str:
    return f"{meters:.1f}" if meters < 10 else f"{meters:.0f}"
