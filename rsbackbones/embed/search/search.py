"""Cells like an example: the embeddings of a store or a table by similarity, with faiss.

The similarity is the inner product of unit vectors (the cosine), exact, over all vectors; shards are read one
by one, of all UTM zones and dates. ``center`` says what is done to features before: ``none``; ``mean``
subtracts the mean of all that is searched, which all vectors of a ViT share; ``whiten`` also scales them to
one variance in all directions. With an index (:mod:`rsbackbones.embed.search.index`) shards are not read, and
hits are approximate.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.embed.search.centering import CENTERS, Centering, fit, unit
from rsbackbones.embed.search.example import Example
from rsbackbones.embed.search.index import Sample, build_index, open_index, state_costs
from rsbackbones.embed.search.layer import Indices, Layer
from rsbackbones.embed.search.maps import Maps
from rsbackbones.embed.search.rows import Rows
from rsbackbones.files.objects import is_url

# A geometry of a table that is so far from a place, in meters, is still meant by it.
WITHIN = 100.0


@dataclass(frozen=True)
class Hits:
    """The most similar vectors, best first.

    Attributes:
        similarity: [k], the cosine after centering, less that of negative examples.
        numbers: [k], which vectors they are.
        layers: [k], the place of the map in ``Searched.layers``; zeros of a table.
        rows: [k] of the map, or the row of a table.
        columns: [k] of the map; zeros of a table.
        lon, lat: [k], of the centers in degrees.
        similarities: of each of ``Searched.layers`` all cells [rows, columns], NaN without data and where
            another zone's cells count; ``None`` of a table, with an index, and where no maps were wanted.
        facts: what was searched, and how.
    """

    similarity: Array
    numbers: Indices
    layers: Indices
    rows: Indices
    columns: Indices
    lon: Array
    lat: Array
    similarities: list[Array] | None
    facts: dict[str, Any]


class Searched:
    """The embeddings of a store of shards (.zarr) or of a GeoParquet table, to be searched.

    Args:
        place: the path, or the URL of a store.
        center: one of ``CENTERS``.
        group: the only UTM zone to search, of a store of several. Default: all; where they share ground, its
            cells count in one of them (:mod:`rsbackbones.embed.search.maps`).
        date: the only day to search, ``2024-06-01``, of a store with a time axis. Default: all.
        index: a file of an index; one that does not exist is built.
        report: takes what an index costs, before it is built.

    Raises:
        ImportError: faiss is not installed.
        ValueError: there is no store or table, or no such group or date, it holds no vectors, or the index is
            of others.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        center: str = "mean",
        group: str | None = None,
        date: str | None = None,
        index: Path | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        if center not in CENTERS:
            raise ValueError(f"center must be one of {', '.join(CENTERS)}, got {center!r}")
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            raise ImportError("searching needs faiss: pip install 'rsbackbones[search]'") from error
        self.place, self.center = os.fspath(place), center
        self._of_store = {"group": group, "date": date}
        self._held: Maps | Rows
        if self.place.rstrip("/").endswith(".zarr"):
            self._held = Maps(self.place, group=group, date=date)
        elif group is not None or date is not None:
            raise ValueError(f"group and date are of a store (.zarr), got {self.place}")
        elif self.place.endswith(".parquet") and not is_url(self.place):
            self._held = Rows(self.place)
        else:
            raise ValueError(f"a store (.zarr) or a table (.parquet) is searched, got {self.place}")
        self._index: Any = None
        self._fitted: Centering | None = None
        if index is not None:
            self._use_index(index, report)

    @property
    def dim(self) -> int:
        """The number of features of a vector."""
        return self._held.dim

    @property
    def layers(self) -> list[Layer]:
        """The maps that are searched, by group and date; none of a table."""
        return self._held.layers if isinstance(self._held, Maps) else []

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the embeddings; of several zones that of the first, which differs in its items alone."""
        found: dict[str, Any] = next(iter(self._held.provenance.values()))
        return found

    def outlines(self, hits: Hits) -> list[Any]:
        """Return the outlines of hits in degrees, as polygons of shapely."""
        return self._held.outlines(hits.numbers)

    def names(self, hits: Hits) -> list[str]:
        """Return what a list calls hits, beside their place: group and date, or the id in a table."""
        return self._held.names(hits.numbers)

    def describe(self, hits: Hits) -> dict[str, Any]:
        """Return what hits are, by column: row and column, group and date; of a table its id, date and
        source.
        """
        return self._held.columns(hits.numbers)

    def at(self, lon: float, lat: float, *, date: str | None = None, within: float | None = None) -> Array:
        """Return the vector [D] at a place in degrees, see :meth:`example_at`."""
        return self.example_at(lon, lat, date=date, within=within).vector

    def example_at(
        self, lon: float, lat: float, *, date: str | None = None, within: float | None = None
    ) -> Example:
        """Return the vector [D] at a place in degrees, and where it was found.

        Args:
            lon, lat: the place.
            date: the day that it is of, of a store with a time axis. Default: the mean of all dates that are
                searched and have data there.
            within: of a table, how many meters away the nearest geometry may be where none covers the place;
                default ``WITHIN``. Of several geometries at one place it is the mean.

        Raises:
            ValueError: the place lies outside, or has no data.
        """
        if isinstance(self._held, Maps):
            if within is not None:
                raise ValueError(f"within is of a table, {self.place} has cells")
            return self._held.example_at(lon, lat, date)
        if date is not None:
            raise ValueError(f"the date of an example is of a store (.zarr), got {self.place}")
        return self._held.example_at(lon, lat, WITHIN if within is None else within)

    def box(self, west: float, south: float, east: float, north: float, *, date: str | None = None) -> Array:
        """Return the mean vector [D] in a box in degrees, see :meth:`example_in`."""
        return self.example_in((west, south, east, north), date=date).vector

    def example_in(self, box: Sequence[float], *, date: str | None = None) -> Example:
        """Return the mean vector [D] of the cells whose centers lie in a box (west, south, east, north) in
        degrees, or of the geometries within; of a box within one cell that of this cell.

        Raises:
            ValueError: the corners are not in order, or no cell with data is there.
        """
        west, south, east, north = box
        if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
            raise ValueError(
                "a box is west, south, east, north in degrees, with west <= east and south <= north, got "
                f"{west}, {south}, {east}, {north}"
            )
        if isinstance(self._held, Maps):
            return self._held.example_in((west, south, east, north), date)
        if date is not None:
            raise ValueError(f"the date of an example is of a store (.zarr), got {self.place}")
        return self._held.example_in((west, south, east, north))

    def search(
        self, positives: Sequence[Array], negatives: Sequence[Array] = (), *, k: int = 50, maps: bool = True
    ) -> Hits:
        """Return the k vectors that are most like the positive examples, and unlike the negative ones.

        The query is the mean of the unit vectors of the positives, less half that of the negatives.

        Args:
            positives, negatives: vectors [D], as the store or table has them.
            k: how many.
            maps: keep the similarities of all cells of a store, 4 bytes each.

        Raises:
            ValueError: no example, one of another length, or k below 1.
        """
        if not positives or k < 1:
            raise ValueError(f"expected an example and k of at least 1, got {len(positives)} and {k}")
        if wrong := [len(v) for v in (*positives, *negatives) if len(v) != self.dim]:
            raise ValueError(f"{self.place} has vectors of {self.dim} features, an example has {wrong[0]}")
        query = self._centering.apply(np.stack(positives)).mean(axis=0)
        if negatives:
            query = query - 0.5 * self._centering.apply(np.stack(negatives)).mean(axis=0)
        scores, numbers, similarities = self._nearest(unit(query), k, maps)
        lon, lat = self._held.degrees(numbers)
        zeros = np.zeros_like(numbers)
        of, rows, columns = (
            self._held.locate(numbers) if isinstance(self._held, Maps) else (zeros, numbers, zeros)
        )
        facts = {"searched": self.place, "center": self.center, **self._of_store,
                 "maps": [layer.name for layer in self.layers if layer.name], "k": k,
                 "positives": len(positives), "negatives": len(negatives),
                 "provenance": self._all_provenance()}  # fmt: skip
        if self._index is not None:
            facts["index"] = self._index.facts["index"]
        return Hits(scores, numbers, of, rows, columns, lon, lat, similarities, facts)

    @property
    def _centering(self) -> Centering:
        """What is done to vectors; a store is read for it once, when it is searched."""
        if self._fitted is None and self.center == "none":
            self._fitted = Centering(np.zeros(self.dim))
        elif self._fitted is None:
            self._fitted, count = fit(self.center, self._held.parts(), self.dim)
            self._require(count)
        return self._fitted

    def _all_provenance(self) -> dict[str, Any]:
        """Return the provenance, of several groups by group."""
        stated = self._held.provenance
        return self.provenance if len(stated) == 1 else {str(group): one for group, one in stated.items()}

    def _nearest(self, query: Array, k: int, maps: bool) -> tuple[Array, Indices, list[Array] | None]:
        """Return similarities and numbers of the k nearest vectors, and the maps of all similarities."""
        import faiss

        if self._index is not None:
            return *self._index.search(query, k), None
        best = faiss.ResultHeap(1, k, keep_max=True)
        every = np.full(self._held.count, np.nan, np.float32) if maps and self.layers else None
        for numbers, prepared in self._prepared_parts():
            index = faiss.IndexFlatIP(self.dim)
            index.add(prepared)
            found, places = index.search(query[None], min(k, len(numbers)))
            best.add_result(found, numbers[places])
            if every is not None:
                every[numbers] = prepared @ query
        best.finalize()
        kept = best.I[0] >= 0
        self._require(int(kept.sum()))
        return best.D[0][kept], best.I[0][kept], None if every is None else self._split(every)

    def _split(self, every: Array) -> list[Array]:
        """Return values of all cells as maps."""
        shapes = [layer.shape for layer in self.layers]
        ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(every, ends), shapes, strict=True)]

    def _prepared_parts(self) -> Iterator[tuple[Indices, npt.NDArray[np.float32]]]:
        """Yield the numbers of vectors with data, and these [N, D], centered or whitened, part by part."""
        for numbers, vectors in self._held.parts():
            yield numbers, np.ascontiguousarray(self._centering.apply(vectors))

    def _use_index(self, path: Path, report: Callable[[str], None]) -> None:
        """Open the index, which is built where there is none."""
        facts = {"center": self.center, **self._of_store, "digest": self._held.digest()}
        if not path.exists():
            report(state_costs(path, self._held.count, self.dim, self._held.at_once))
            sample = Sample()
            self._fitted, count = fit(self.center, sample.through(self._held.parts()), self.dim)
            self._require(count)
            prepared = self._fitted.apply(sample.vectors)
            build_index(path, self._prepared_parts, prepared, count, self._fitted, facts)
        self._index = open_index(path)
        for fact, value in facts.items():
            if self._index.facts[fact] != value:
                raise ValueError(
                    f"{path} is an index of other vectors than those of {self.place} ({fact} "
                    f"{self._index.facts[fact]}, not {value}); name a new file, and it is built"
                )
        self._fitted = self._index.centering

    def _require(self, count: int) -> None:
        if not count:
            raise ValueError(f"{self.place} holds no vector with data")
