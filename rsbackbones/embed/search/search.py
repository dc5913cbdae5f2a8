"""Cells like an example: the embeddings of a store or a table by similarity, with faiss.

The similarity is the inner product of unit vectors (the cosine), exact, over all vectors; shards are read one
by one. ``center`` says what is done to features before: ``none``; ``mean`` subtracts the mean of the store,
which all vectors of a ViT share; ``whiten`` also scales them to one variance in all directions. With an index
(:mod:`rsbackbones.embed.search.index`) shards are not read, and hits are approximate.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.embed.search.index import build_index, open_index
from rsbackbones.embed.store import PROVENANCE, open_store
from rsbackbones.files.objects import Objects, is_url
from rsbackbones.files.sha256 import sha256_of

CENTERS = ("none", "mean", "whiten")
# Vectors that mean and covariance are of.
_SAMPLE = 100_000


@dataclass(frozen=True)
class Hits:
    """The most similar vectors, best first.

    Attributes:
        similarity: [k], the cosine after centering, less that of negative examples.
        rows: [k] of the map, or the row of a table.
        columns: [k] of the map; zeros of a table.
        lon, lat: [k], of the centers in degrees.
        similarities: the whole map [rows, columns], NaN without data; ``None`` of a table, and with an index.
        facts: what was searched, and how.
    """

    similarity: Array
    rows: Array
    columns: Array
    lon: Array
    lat: Array
    similarities: Array | None
    facts: dict[str, Any]


class Searched:
    """The embeddings of a store of shards (.zarr) or of a GeoParquet table, to be searched.

    Args:
        place: the path, or the URL of a store.
        center: one of ``CENTERS``.
        group: of a store of several UTM zones, which are searched one by one.
        date: of a store with a time axis, ``2024-06-01``.
        index: a file of an index; one that does not exist is built.

    Raises:
        ImportError: faiss is not installed.
        ValueError: there is no store or table, it holds no vectors, or the index is of others.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        center: str = "mean",
        group: str | None = None,
        date: str | None = None,
        index: Path | None = None,
    ) -> None:
        if center not in CENTERS:
            raise ValueError(f"center must be one of {', '.join(CENTERS)}, got {center!r}")
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            raise ImportError("searching needs faiss: pip install 'rsbackbones[search]'") from error
        self.place, self.center = os.fspath(place), center
        self._of_store = {"group": group, "date": date}
        self._table: Any = None
        self._index: Any = None
        self._mean: Array
        self._matrix: Array | None = None
        import odc.geo.xr  # noqa: F401

        if self.place.rstrip("/").endswith(".zarr"):
            store = open_store(self.place, group=group)
            self._data = _of_date(store["embeddings"], date, self.place)
            self.provenance: dict[str, Any] = store.attrs[PROVENANCE]
        elif group is not None or date is not None:
            raise ValueError(f"group and date are of a store (.zarr), got {self.place}")
        elif self.place.endswith(".parquet") and not is_url(self.place):
            import geopandas
            import pyarrow.parquet as pq

            if not Path(self.place).exists():
                raise ValueError(f"there is no table {self.place}")
            self._table = geopandas.read_parquet(self.place)
            if "embedding" not in self._table:
                raise ValueError(f"{self.place} has no column embedding; it has {', '.join(self._table)}")
            stated = pq.ParquetDataset(self.place).schema.metadata  # of a file, or a folder of parts
            self.provenance = {
                k.decode(): v.decode() for k, v in stated.items() if k not in (b"geo", b"pandas")
            }
        else:
            raise ValueError(f"a store (.zarr) or a table (.parquet) is searched, got {self.place}")
        facts = {} if index is None else {"digest": self._digest(), "center": center, **self._of_store}
        if index is None or not index.exists():
            sample = self._fit()
        if index is not None:
            if not index.exists():
                made = {"mean": self._mean, "matrix": self._matrix, "cells": self._cells}
                prepared = self._prepared(sample).astype(np.float32)
                build_index(index, self._prepared_parts, prepared, facts | made)
            self._index = open_index(index)
            for fact, value in facts.items():
                if self._index.facts[fact] != value:
                    raise ValueError(
                        f"{index} is an index of other vectors than those of {self.place} ({fact} "
                        f"{self._index.facts[fact]}, not {value}); name a new file, and it is built"
                    )
            self._mean, self._matrix = self._index.mean, self._index.matrix

    @property
    def dim(self) -> int:
        """The number of features of a vector."""
        return int(self._mean.shape[0])

    @property
    def geobox(self) -> Any:
        """The ``odc.geo`` GeoBox of a store."""
        return self._data.odc.geobox

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a store."""
        return int(self._data.shape[1]), int(self._data.shape[2])

    def thinned(self, step: int) -> Array:
        """Return every ``step``-th vector of a store in both directions, [h, w, D]."""
        rows, columns = (-(-n // step) for n in self.shape)
        made = np.full((rows, columns, self.dim), np.nan, np.float32)
        for (top, left), vectors in self._parts():
            first, begin = -top % step, -left % step
            part = vectors[first::step, begin::step]
            r, c = (top + first) // step, (left + begin) // step
            made[r : r + part.shape[0], c : c + part.shape[1]] = part
        return made

    def outlines(self, hits: Hits) -> list[Any]:
        """Return the outlines of hits in degrees, as polygons of shapely."""
        if self._table is not None:
            return list(self._table.geometry.iloc[hits.rows])
        box = self.geobox
        return [
            box[int(r) : int(r) + 1, int(c) : int(c) + 1].extent.to_crs("EPSG:4326").geom
            for r, c in zip(hits.rows, hits.columns, strict=True)
        ]

    def at(self, lon: float, lat: float) -> Array:
        """Return the vector [D] at a place in degrees.

        Raises:
            ValueError: it lies outside, or has no data.
        """
        vector: Array
        if self._table is not None:
            from shapely import Point

            within = self._table.geometry.covers(Point(lon, lat)).to_numpy(bool, na_value=False)
            if not within.any():
                raise ValueError(f"no row of {self.place} covers {lon}, {lat}")
            vector = np.asarray(self._table["embedding"][within].iloc[0], np.float32)
        else:
            row, column = self._cell(lon, lat)
            vector = self._block(slice(row, row + 1), slice(column, column + 1))[0, 0]
        if not np.isfinite(vector).all():
            raise ValueError(f"{self.place} has no data at {lon}, {lat}")
        return vector

    def box(self, west: float, south: float, east: float, north: float) -> Array:
        """Return the mean vector [D] of the cells that a box in degrees touches, or of the places in it.

        Raises:
            ValueError: the corners are not in order, or no cell with data is there.
        """
        if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
            raise ValueError(
                f"a box is west, south, east, north in degrees, got {west}, {south}, {east}, {north}"
            )
        if self._table is not None:
            inside = self._table.cx[west:east, south:north]
            vectors = _stacked(inside["embedding"])
        else:
            corners = [self._cell(x, y, outside=True) for x in (west, east) for y in (south, north)]
            rows, columns = (slice(max(min(at), 0), max(max(at) + 1, 0)) for at in zip(*corners, strict=True))
            vectors = self._block(rows, columns).reshape(-1, self.dim)
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if not len(vectors):
            raise ValueError(f"no cell of {self.place} with data lies in {west}, {south}, {east}, {north}")
        mean: Array = vectors.mean(axis=0)
        return mean

    def search(self, positives: Sequence[Array], negatives: Sequence[Array] = (), *, k: int = 50) -> Hits:
        """Return the k vectors that are most like the positive examples, and unlike the negative ones.

        The query is the mean of the unit vectors of the positives, less half that of the negatives.

        Raises:
            ValueError: no example, one of another length, or k below 1.
        """
        if not positives or k < 1:
            raise ValueError(f"expected an example and k of at least 1, got {len(positives)} and {k}")
        if wrong := [len(v) for v in (*positives, *negatives) if len(v) != self.dim]:
            raise ValueError(f"{self.place} has vectors of {self.dim} features, an example has {wrong[0]}")
        query = self._prepared(np.stack(positives)).mean(axis=0)
        if negatives:
            query = query - 0.5 * self._prepared(np.stack(negatives)).mean(axis=0)
        query = _unit(query[None]).astype(np.float32)
        scores, numbers, similarities = self._nearest(query[0], k)
        rows, columns = np.divmod(numbers, self._width)
        lon, lat = self._degrees(rows, columns)
        facts = {"searched": self.place, "center": self.center, **self._of_store, "k": k,
                 "positives": len(positives), "negatives": len(negatives),
                 "provenance": self.provenance}  # fmt: skip
        if self._index is not None:
            facts["index"] = self._index.facts["index"]
        return Hits(scores, rows, columns, lon, lat, similarities, facts)

    @property
    def _width(self) -> int:
        """How many columns a row has: a vector's number is that of its row times this, plus its column."""
        return 1 if self._table is not None else self.shape[1]

    @property
    def _cells(self) -> int:
        """How many vectors there are, those without data too."""
        return len(self._table) if self._table is not None else self.shape[0] * self.shape[1]

    def _nearest(self, query: Array, k: int) -> tuple[Array, Array, Array | None]:
        """Return similarities and numbers of the k nearest vectors, and the map of all similarities."""
        import faiss

        if self._index is not None:
            return *self._index.search(query, k), None
        best = faiss.ResultHeap(1, k, keep_max=True)
        similarities = None if self._table is not None else np.full(self.shape, np.nan, np.float32)
        for numbers, prepared in self._prepared_parts():
            index = faiss.IndexFlatIP(self.dim)
            index.add(prepared)
            found, places = index.search(query[None], min(k, len(numbers)))
            best.add_result(found, numbers[places])
            if similarities is not None:
                similarities.reshape(-1)[numbers] = prepared @ query
        best.finalize()
        kept = best.I[0] >= 0
        return best.D[0][kept], best.I[0][kept], similarities

    def _prepared_parts(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Yield the numbers of vectors with data, and these [N, D], centered or whitened, shard by shard."""
        for (top, left), vectors in self._parts():
            rows, columns = np.nonzero(np.isfinite(vectors).all(axis=-1))
            if len(rows):
                prepared = np.ascontiguousarray(self._prepared(vectors[rows, columns]), np.float32)
                yield (rows + top) * self._width + columns + left, prepared

    def _digest(self) -> str:
        """Return a digest of what is searched: of a table's bytes; of a store its facts and sizes."""
        if self._table is not None:
            path = Path(self.place)
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            return hashlib.sha256("\n".join(map(sha256_of, files)).encode()).hexdigest()
        listed = sorted(f"{key} {size}" for key, size in Objects(self.place).sizes())
        stated = json.dumps(self.provenance, sort_keys=True)
        return hashlib.sha256("\n".join([*listed, stated]).encode()).hexdigest()

    def _parts(self) -> Iterator[tuple[tuple[int, int], Array]]:
        """Yield the vectors [h, w, D] shard by shard, with their row and column."""
        if self._table is not None:
            vectors = _stacked(self._table["embedding"])
            for start in range(0, len(vectors), _SAMPLE):
                yield (start, 0), vectors[start : start + _SAMPLE, None]
            return
        _, ys, xs = self._data.chunks  # those of the shards
        for top, height in zip(np.cumsum([0, *ys[:-1]]).tolist(), ys, strict=True):
            for left, width in zip(np.cumsum([0, *xs[:-1]]).tolist(), xs, strict=True):
                yield (top, left), self._block(slice(top, top + height), slice(left, left + width))

    def _block(self, rows: slice, columns: slice) -> Array:
        part = self._data[:, rows, columns].compute(scheduler="synchronous")
        return np.moveaxis(part.values, 0, -1)

    def _fit(self) -> Array:
        """Find the mean of the vectors and what whitens them, from a sample [N, D], which is returned."""
        parts, count = [], 0
        for _, vectors in self._parts():
            flat = vectors.reshape(-1, vectors.shape[-1])
            flat = flat[np.isfinite(flat).all(axis=1)]
            step = max(1, len(flat) * 16 // _SAMPLE)
            parts.append(flat[::step])
            count += len(parts[-1])
        if not count:
            raise ValueError(f"{self.place} holds no vector with data")
        sample = np.concatenate(parts)
        sample = sample[:: max(1, len(sample) // _SAMPLE)].astype(np.float64)
        dim = sample.shape[1]
        self._mean = np.zeros(dim) if self.center == "none" else sample.mean(axis=0)
        if self.center == "whiten":
            values, vectors = np.linalg.eigh(np.cov(sample - self._mean, rowvar=False))
            # Directions that hardly vary would be noise alone.
            scale = 1 / np.sqrt(np.maximum(values, values.max() * 1e-4))
            self._matrix = (vectors * scale) @ vectors.T
        return sample

    def _prepared(self, vectors: Array) -> Array:
        """Return vectors [N, D], centered or whitened, of unit length."""
        x = vectors.astype(np.float64) - self._mean
        return _unit(x if self._matrix is None else x @ self._matrix)

    def _cell(self, lon: float, lat: float, *, outside: bool = False) -> tuple[int, int]:
        from rasterio.warp import transform

        box = self._data.odc.geobox
        (x,), (y,) = transform("EPSG:4326", box.crs.to_wkt(), [lon], [lat])
        t = box.affine
        row, column = int(np.floor((y - t.f) / t.e)), int(np.floor((x - t.c) / t.a))
        if not outside and not (0 <= row < box.height and 0 <= column < box.width):
            raise ValueError(f"{lon}, {lat} (degrees east and north) lies outside of {self.place}")
        return row, column

    def _degrees(self, rows: Array, columns: Array) -> tuple[Array, Array]:
        from rasterio.warp import transform

        if self._table is not None:
            points = self._table.geometry.iloc[rows].centroid
            return points.x.to_numpy(), points.y.to_numpy()
        box = self._data.odc.geobox
        t = box.affine
        xs, ys = t.c + t.a * (columns + 0.5), t.f + t.e * (rows + 0.5)
        lon, lat = transform(box.crs.to_wkt(), "EPSG:4326", xs, ys)
        return np.array(lon), np.array(lat)


def _of_date(data: Any, date: str | None, place: str) -> Any:
    """Return the embeddings (band, y, x) of a date of a store with a time axis."""
    if "time" not in data.dims:
        if date is not None:
            raise ValueError(f"{place} has no time axis: leave out the date, {date}")
        return data
    days = np.datetime_as_string(data["time"].values, "D").tolist()
    if date not in days:
        raise ValueError(f"{place} has embeddings of {', '.join(days)}; choose a date (--date), got {date}")
    return data.isel(time=days.index(date))


def _stacked(column: Any) -> Array:
    vectors = [np.asarray(v, np.float32) for v in column]
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)


def _unit(x: Array) -> Array:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)
