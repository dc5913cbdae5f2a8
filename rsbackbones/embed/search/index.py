"""An index of vectors in a file, for stores so large that reading all of them for a search takes too long.

The file is an IVF index of faiss (vectors in 8 bits, in lists around centroids; a search compares the lists
nearest to the query), after which come the facts that it is valid for. faiss maps it into memory. Hits are
approximate: their recall against the exact search is measured while the index is built, and recorded.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.files.atomic import atomic_path

_MAGIC = b"rsbackbones ivf1"
# So many vectors of the sample for each centroid at least, as faiss wants.
_PER_LIST = 39
# Recall is of the ten nearest of so many vectors of the store; lists are compared until it is so high.
_QUERIES, _NEAREST, _RECALL = 100, 10, 0.95

# Vectors [N, D] of unit length, float32, with their numbers [N].
Parts = Callable[[], Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]]


@dataclass(frozen=True)
class SearchIndex:
    """An index that was opened.

    Attributes:
        facts: what it is valid for, and ``index``: its vectors, lists, lists compared and ``recall_at_10``.
        mean, matrix: what is done to vectors before they are compared.
    """

    facts: dict[str, Any]
    mean: Array
    matrix: Array | None
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


def build_index(path: Path, parts: Parts, sample: Array, facts: dict[str, Any]) -> None:
    """Write an index of vectors, which holds a byte for each of their values in memory meanwhile.

    Args:
        path: the file.
        parts: the vectors, read once.
        sample: of them, [N, D], for the centroids and as queries.
        facts: what the index is valid for; ``mean`` and ``matrix`` of them are arrays or ``None``, ``cells``
            is about how many vectors there are.

    Raises:
        ValueError: there are fewer than 1,000 vectors.
    """
    import faiss

    if len(sample) < 1000:
        raise ValueError(f"an index is for many vectors, there are {len(sample)}: search without one")
    lists = min(round(4 * facts["cells"] ** 0.5), len(sample) // _PER_LIST)
    dim = sample.shape[1]
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
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
        arrays = {name: facts[name] for name in ("mean", "matrix") if facts[name] is not None}
        stated = {name: value for name, value in facts.items() if name not in ("mean", "matrix")}
        np.savez(held, facts=json.dumps(stated | {"index": measured}), **arrays)
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
            mean, matrix = held["mean"], held.get("matrix")
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    return SearchIndex(facts, mean, matrix, index)


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
