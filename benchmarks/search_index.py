"""``python -m benchmarks.search_index``: what an index of a large store costs, and what it finds.

Writes a store of vectors in clusters with the writer of jobs, builds the index of ``rsbackbones search
--index``, and searches with and without it. Recall is of cells that the index was not tuned on, against numpy
over the store as :func:`rsbackbones.embed.open` gives it. Prints a table in Markdown; some minutes on one
thread.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio

import rsbackbones as rsb
from benchmarks import memory
from benchmarks.machine import machine
from benchmarks.processes import say
from rsbackbones.embed.job import Job
from rsbackbones.embed.quantize import Quantization
from rsbackbones.embed.search.index import SearchIndex, open_index
from rsbackbones.embed.search.search import Searched
from rsbackbones.embed.store import create_store, write_shard
from rsbackbones.files.markdown import markdown_table

Vectors = npt.NDArray[np.float32]
# So many cells are looked for, their ten nearest each; exact searches read the store, and two are timed.
QUERIES, NEAREST, TIMED = 200, 10, 2
CLUSTERS, SEED = 5000, 0


def plan_store(folder: Path, side: int, dim: int) -> Job:
    """Return a job over an empty raster whose map has ``side`` cells in both directions."""
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    bands, path, pixels = model.bands["s2"], folder / "empty.tif", side * model.stride
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", count=len(bands), height=pixels, width=pixels,
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000), SPARSE_OK=True,
        tiled=True, nodata=0, BIGTIFF="YES",
    ) as raster:  # fmt: skip
        raster.descriptions = bands
    job = rsb.embed.plan(model, path, folder / "large.zarr")
    assert isinstance(job, Job)
    return replace(job, dim=dim)


def write_store(job: Job) -> None:
    """Write vectors around centers of clusters, whose sizes differ much, shard by shard."""
    rng = np.random.default_rng(SEED)
    centers = rng.normal(0, 1, (CLUSTERS, job.dim)) + rng.normal(0, 1, job.dim)
    weights = 1 / np.arange(1, CLUSTERS + 1)

    def draw(count: int) -> Vectors:
        of = rng.choice(CLUSTERS, count, p=weights / weights.sum())
        noise = rng.standard_normal((count, job.dim), np.float32)
        return centers[of].astype(np.float32) + np.float32(0.6) * noise

    rule = Quantization.of_sample("per-band", draw(20_000))
    job = job.calibrated({"quantization": rule.as_json()})
    create_store(job)
    for block in job.blocks:
        stored, scales, _ = rule.encode(draw(block.shape[0] * block.shape[1]))
        write_shard(job, block, stored.reshape(*block.shape, job.dim), scales)


def exact_neighbors(place: Path, queries: Vectors, mean: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the numbers of the vectors nearest to each query, [Q, NEAREST + 1], by numpy."""
    best = np.full((len(queries), NEAREST + 1), -np.inf, np.float32)
    numbers = np.zeros(best.shape, np.int64)
    wanted = _centered(queries, mean)
    for first, vectors in _rows(place):
        scores = wanted @ _centered(vectors, mean).T
        here = np.argpartition(-scores, NEAREST, axis=1)[:, : NEAREST + 1]
        scores = np.concatenate([best, np.take_along_axis(scores, here, 1)], axis=1)
        every = np.concatenate([numbers, here + first], axis=1)
        order = np.argsort(-scores, axis=1)[:, : NEAREST + 1]
        best, numbers = np.take_along_axis(scores, order, 1), np.take_along_axis(every, order, 1)
    return numbers


def _rows(place: Path) -> Iterator[tuple[int, Vectors]]:
    """Yield the vectors of some rows of the map at a time, with the number of the first."""
    data = rsb.embed.open(place)["embeddings"]
    height, width = data.shape[1:]
    for top in range(0, height, 64):
        part = np.moveaxis(data[:, top : top + 64].compute(scheduler="synchronous").values, 0, -1)
        yield top * width, part.reshape(-1, part.shape[-1])


def _centered(vectors: Vectors, mean: npt.NDArray[Any]) -> Vectors:
    x = vectors - mean.astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def measure(folder: Path, side: int, dim: int) -> list[list[str]]:
    """Return the rows of the table."""
    job = plan_store(folder, side, dim)
    write_store(job)
    place, path = folder / "large.zarr", folder / "large.ivf"
    say(f"wrote {side * side} vectors")
    memory.give_back()
    memory.forget_peak()
    before, start, work = memory.resident(), time.perf_counter(), time.process_time()
    said: list[str] = []
    indexed = Searched(place, index=path, report=said.append)
    seconds, busy, held = time.perf_counter() - start, time.process_time() - work, memory.peak()
    found: SearchIndex = open_index(path)
    stated = found.facts["index"]
    say(f"built in {seconds:.0f} s: {stated}; stated before: {said[0]}")

    rng = np.random.default_rng(SEED + 1)
    cells = np.sort(rng.choice(side * side, QUERIES, replace=False))
    queries = np.concatenate([x[cells[(cells >= n) & (cells < n + len(x))] - n] for n, x in _rows(place)])
    nearest = exact_neighbors(place, queries, found.centering.mean)
    recalls, spent = [], []
    for cell, query, wanted in zip(cells, queries, nearest, strict=True):
        start = time.process_time()
        hits = indexed.search([query], k=NEAREST + 1)
        spent.append(time.process_time() - start)
        others = set(wanted.tolist()) - {int(cell)}
        recalls.append(len(others & set(hits.numbers.tolist())) / len(others))
    exact, of_exact = Searched(place), []
    exact.search([queries[0]], k=1, maps=False)  # which reads the mean too
    for cell_queries in queries[:TIMED]:
        start = time.process_time()
        exact.search([cell_queries], k=NEAREST + 1, maps=False)
        of_exact.append(time.process_time() - start)
    added = "not known" if held is None or before is None else f"{(held - before) / 2**20:.0f} MiB"
    return [
        ["vectors", f"{side * side:,} of {dim} values in 8 bits"],
        ["to build the index", f"{busy:.0f} s of CPU time, {seconds:.0f} s; {added} of memory"],
        ["stated before", said[0].partition(": ")[2]],
        ["file", f"{path.stat().st_size / 2**20:.0f} MiB"],
        ["lists, compared", f"{stated['lists']}, {stated['lists_compared']}"],
        ["recall of the ten nearest: stated, measured", f"{stated['recall_at_10']:.3f}, "
         f"{np.mean(recalls):.3f}"],
        ["a search by the index, CPU time (median)", f"{1e3 * float(np.median(spent)):.1f} ms"],
        ["an exact search, CPU time", f"{1e3 * float(np.mean(of_exact)):.0f} ms"],
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--side", type=int, default=2048, help="of the map in cells")
    parser.add_argument("--dim", type=int, default=128, help="of the vectors")
    parser.add_argument(
        "--folder", type=Path, help="of the store, a temporary one within; default: the system's"
    )
    options = parser.parse_args()
    on = machine()
    import faiss

    print(f"{on['cpu']}, {faiss.omp_get_max_threads()} threads, faiss {faiss.__version__}, the load was "
          f"{on['load_before']}")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(markdown_table(["", "measured"], measure(Path(folder), options.side, options.dim), "ll"))


if __name__ == "__main__":
    main()
