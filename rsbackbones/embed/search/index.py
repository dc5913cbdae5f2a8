"""An index of vectors in a file, for stores so large that reading all of them for a search takes too long.

The file is an IVF index of faiss (vectors in 16 bits, in lists around centroids; a search compares the lists
nearest to the query), after which come the facts that it is valid for. faiss maps it into memory. Hits are
approximate: their recall against the exact search is measured while the index is built, and recorded.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.embed.search.centering import Centering
from rsbackbones.files.atomic import atomic_path
from rsbackbones.files.resumable import check_space

_MAGIC = b"rsbackbones ivf1"
# So many vectors of the sample for each centroid at least, as faiss wants.
_PER_LIST = 39
# Recall is of the ten nearest of so many vectors of the store; lists are compared until it is so high.
_QUERIES, _NEAREST, _RECALL = 100, 10, 0.95
# Vectors that centroids are of, at least where there are more; at most twice as many are held.
_SAMPLE = 100_000
# While it is built, lists that are full get twice the room.
_GROWTH = 2
# So many arrays of the size of what is read at a time, in float32, are in memory.
_COPIES = 10

# Vectors [N, D] of unit length, float32, with their numbers [N].
Parts = Callable[[], Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]]


class Sample:
    """Every n-th of vectors that pass by, with n such that there are between ``most`` and twice as many.

    A sample of fewer vectors than these is all of them.
    """

    def __init__(self, most: int = _SAMPLE) -> None:
        self._most, self._step, self._seen = most, 1, 0
        self._kept: list[Array] = []

    def through(
        self, parts: Iterable[tuple[npt.NDArray[np.int64], Array]]
    ) -> Iterator[tuple[npt.NDArray[np.int64], Array]]:
        """Yield numbers and vectors [N, D] as they are given, and keep some."""
        for numbers, vectors in parts:
            self._kept.append(vectors[-self._seen % self._step :: self._step].copy())
            self._seen += len(vectors)
            while sum(map(len, self._kept)) > 2 * self._most:
                self._kept, self._step = [np.concatenate(self._kept)[::2].copy()], 2 * self._step
            yield numbers, vectors

    @property
    def vectors(self) -> Array:
        """Those that were kept, [N, D]."""
        return np.concatenate(self._kept)


@dataclass(frozen=True)
class SearchIndex:
    """An index that was opened.

    Attributes:
        facts: what it is valid for, and ``index``: its vectors, lists, lists compared and ``recall_at_10``.
        centering: what is done to vectors before they are compared.
    """

    facts: dict[str, Any]
    centering: Centering
    index: Any

    def search(self, query: Array, k: int) -> tuple[Array, Array]:
        """Return the similarities and the numbers of the k vectors nearest to a query [D], best first.

        More lists are compared where those that the recall needs hold fewer than k vectors.
        """
        import faiss

        parameters: Any = faiss.SearchParametersIVF  # its stub lacks the keyword
        lists = self.index.nprobe
        while True:
            compared = parameters(nprobe=lists)
            scores, numbers = self.index.search(query[None].astype(np.float32), k, params=compared)
            found = numbers[0] >= 0
            if found.all() or lists >= self.index.nlist:
                return scores[0][found], numbers[0][found]
            lists *= 2


def file_size(count: int, dim: int) -> int:
    """Return about how many bytes an index of so many vectors [D] has, for each its values and its number."""
    return count * (2 * dim + 8)


def state_costs(path: Path, count: int, dim: int, at_once: int) -> str:
    """Return what the index of at most so many vectors [D] costs, in words.

    Args:
        path: of the index.
        count, dim: of the vectors.
        at_once: how many of them are read at a time.

    Raises:
        ValueError: the disk has no room for it.
    """
    size = file_size(count, dim)
    check_space(path.absolute().parent, size, f"an index of up to {count} vectors")
    # The lists, the sample and the same prepared, and what is read, in copies.
    held = _GROWTH * size + 4 * dim * (2 * 2 * min(_SAMPLE, count) + _COPIES * at_once)
    return (
        f"building {path}: up to {count} vectors, a file of {size / 2**20:.0f} MiB, at most about "
        f"{held / 2**20:.0f} MiB of memory; all vectors are read twice"
    )


def build_index(
    path: Path, parts: Parts, sample: Array, count: int, centering: Centering, facts: dict[str, Any]
) -> None:
    """Write an index of vectors, which is held in memory meanwhile, see :func:`state_costs`.

    Args:
        path: the file.
        parts: the vectors, read once.
        sample: of them, [N, D], for the centroids and as queries.
        count: how many vectors there are.
        centering: what was done to them, to be kept.
        facts: what the index is valid for, as JSON takes it.

    Raises:
        ValueError: there are fewer than 1,000 vectors.
    """
    import faiss

    if len(sample) < 1000:
        raise ValueError(f"an index is for many vectors, there are {len(sample)}: search without one")
    lists = min(round(4 * count**0.5), len(sample) // _PER_LIST)
    dim = sample.shape[1]
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.train(sample)
    queries = sample[:: max(1, len(sample) // _QUERIES)][:_QUERIES]
    exact = faiss.ResultHeap(len(queries), _NEAREST + 1, keep_max=True)
    for numbers, vectors in parts():
        index.add_with_ids(vectors, numbers)
        flat = faiss.IndexFlatIP(dim)
        flat.add(vectors)
        scores, places = flat.search(queries, min(_NEAREST + 1, len(vectors)))
        exact.add_result(scores, numbers[places])
    exact.finalize()
    index.nprobe, recall = _lists_to_compare(index, queries, exact.I)
    measured = {
        "vectors": index.ntotal,
        "lists": lists,
        "lists_compared": index.nprobe,
        "recall_at_10": recall,
    }
    with atomic_path(path) as part:
        faiss.write_index(index, str(part))
        held = io.BytesIO()
        arrays: dict[str, Any] = {} if centering.matrix is None else {"matrix": centering.matrix}
        np.savez(held, facts=json.dumps(facts | {"index": measured}), mean=centering.mean, **arrays)
        with part.open("ab") as file:
            file.write(held.getvalue() + len(held.getvalue()).to_bytes(8, "little") + _MAGIC)


def open_index(path: Path) -> SearchIndex:
    """Open the file of an index.

    Raises:
        ValueError: it is none.
    """
    import faiss

    end = len(_MAGIC) + 8
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - end))
        tail = file.read()
        if len(tail) < end or tail[8:] != _MAGIC:
            raise ValueError(f"{path} is no index of a search; name a new file, and it is built")
        file.seek(size - end - int.from_bytes(tail[:8], "little"))
        with np.load(io.BytesIO(file.read()), allow_pickle=False) as held:
            facts = json.loads(str(held["facts"]))
            centering = Centering(held["mean"], held.get("matrix"))
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    return SearchIndex(facts, centering, index)


def _lists_to_compare(index: Any, queries: Array, exact: Array) -> tuple[int, float]:
    """Return how many lists to compare for the recall wanted, and the recall: without the query itself, which
    every search finds.
    """
    compared = 1
    while True:
        index.nprobe = min(compared, index.nlist)
        found = index.search(queries, _NEAREST + 1)[1]
        recall = float((exact[:, 1:, None] == found[:, None, :]).any(2).mean())
        if recall >= _RECALL or index.nprobe == index.nlist:
            return index.nprobe, recall
        compared *= 2
