"""``python -m benchmarks.embed``: what embedding a large area costs beyond the model, and what 8 bits lose.

Ratios of one run, in rounds that take turns, so that whatever else the machine does meets all. CPU time is
that of all threads of a process; wall time says something on a machine that does nothing else.

========  ====================================================================================================
encoding  windows per second of a task (read, encode, blend, quantize, write), over those of the bare model on
          the same windows, read and normalized before, in the same batches of eight
engines   CPU time per window of the same tasks on Dask workers and in a pool, over one process alone; after
          each process's first task
whole     a whole run of a store, with its sample, over :func:`rsbackbones.embed.embed_scene`
borders   windows that are computed for more than one shard
memory    what a task adds to its process at most, over the bound that the job states
bytes     a store in 8 bits over one in float32, of a real scene
rules     neighbors and cosine error of each rule, on features of 1,200 real patches
search    finding the other water of a real scene from one cell of it, by what is done to features before
========  ====================================================================================================

RSB_DATA names the folder of real samples, of which bytes, rules and search are. Speeds are those of random
weights: speed does not depend on them. Writes ``benchmarks/embed.json`` and the tables of ``docs/scale.md``;
``--docs-only`` the tables alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import rasterio
import torch
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

import rsbackbones as rsb
from benchmarks.embed_cell import peak_of_shard, timed_shard
from benchmarks.embed_page import MODEL, PAGE, RECORDED, SMALL, in_docs, tables
from benchmarks.machine import all_cores, machine
from benchmarks.processes import say
from rsbackbones.data.simulator import simulate_scene
from rsbackbones.embed.cluster import local_workers
from rsbackbones.embed.inputs import create_preprocess_of
from rsbackbones.embed.job import Job
from rsbackbones.embed.lattice import Lattice, batches
from rsbackbones.embed.quantize import RULES, Quantization
from rsbackbones.embed.run import prepare
from rsbackbones.embed.search.centering import CENTERS
from rsbackbones.embed.search.search import Searched
from rsbackbones.embed.task import compute_shard
from rsbackbones.files.atomic import write_text

SEED, WORKERS = 0, 2
# Families with bundled weights of Sentinel-2.
TRAINED = ("croma_vit_tiny", "seamo_vit_tiny", "auxmae_vit_tiny", "mixmae_vit_tiny")
_TILE = 512  # pixels of the simulated scene that is repeated


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured: rounds, the model whose tasks engines run, the side of a whole scene."""

    rounds: int
    engines: str
    pixels: int


FULL = Plan(rounds=3, engines=MODEL, pixels=4096)
QUICK = Plan(rounds=1, engines="croma_vit_s", pixels=2048)


def measure(folder: Path, plan: Plan, *, threads: int, data: Path) -> Iterator[dict[str, Any]]:
    """Measure part by part; yield what is found so far. ``threads`` are those of the encoding alone."""
    began = time.monotonic()
    found: dict[str, Any] = {"machine": machine(), "threads": threads, "seed": SEED}
    parts: dict[str, Callable[[], Any]] = {
        "borders": measure_borders,
        "bytes": lambda: measure_bytes(folder, data),
        "rules": lambda: measure_rules(data),
        "search": lambda: measure_search(folder, data),
        "encoding": lambda: {
            name: measure_encoding(folder, name, rounds=plan.rounds, rows=rows, threads=threads)
            for name, rows in ((SMALL, 8), (MODEL, 1))
        },
        "engines": lambda: measure_engines(folder, plan.engines, rounds=plan.rounds),
        "whole": lambda: measure_whole(folder, plan.pixels),
        "memory": lambda: measure_memory(folder),
    }
    for name, part in parts.items():
        found[name] = part()
        found |= {"load_after": round(os.getloadavg()[0], 2), "minutes": (time.monotonic() - began) / 60}
        say(f"{name}: done")
        yield found


# -- speed -------------------------------------------------------------------------------------------------


def write_scene(path: Path, height: int, width: int) -> Path:
    """Write a simulated Sentinel-2 scene of 12 bands as a tiled GeoTIFF; one tile is repeated, mirrored."""
    tile = simulate_scene(_TILE, _TILE, seed=SEED)
    image = np.pad(
        tile.s2, ((0, 0), (0, max(0, height - _TILE)), (0, max(0, width - _TILE))), mode="symmetric"
    )[:, :height, :width]
    profile = {
        "driver": "GTiff", "count": len(image), "height": height, "width": width, "dtype": image.dtype.name,
        "crs": tile.crs, "transform": rasterio.Affine(*tile.transform), "tiled": True, "compress": "deflate",
        "zlevel": 1, "predictor": 2, "blockxsize": _TILE, "blockysize": _TILE,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
        file.descriptions = tile.s2_bands
    return path


def create(name: str, **options: Any) -> rsb.Backbone:
    """Return a model of Sentinel-2 with random weights."""
    torch.manual_seed(SEED)
    return cast(rsb.Backbone, rsb.create_model(name, modalities=("s2",), **options))


def planned(model: rsb.Backbone, path: Path, output: Path, **options: Any) -> Job:
    """Plan a store of one raster."""
    job = rsb.embed.plan(model, path, output, **options)
    assert isinstance(job, Job)  # there is one UTM zone
    return job


def prepared(job: Job) -> Job:
    """Return a job whose store is ready, without a sample of the scene: its numbers do not matter here."""
    features = np.random.default_rng(SEED).normal(size=(1000, job.dim)).astype(np.float32)
    rule = Quantization.of_sample(job.quantize, features)
    job.records.put_json(
        "calibration.json",
        {"quantization": rule.as_json(), "measured": {}, "sample": {}, "values_checked": True},
    )
    return prepare(job, None)


def measure_encoding(folder: Path, name: str, *, rounds: int, rows: int, threads: int) -> dict[str, Any]:
    """Measure tasks and the bare model in turn. A task is a shard of 2,048 pixels and ``rows`` of windows."""
    model = create(name)
    side, cells = model.config.image_sides[0], 256
    stride = side - side * 2 // 5
    height = (rows - 1) * stride + side
    path = write_scene(folder / f"{name}.tif", height, (rounds + 1) * cells * model.stride)
    job = prepared(planned(model, path, folder / f"{name}.zarr", shard=cells, threads=threads))
    held: dict[str, list[dict[str, float]]] = {"embed": [], "model": []}
    torch.set_num_threads(threads)
    with job.source.open(model, (0, 0, height, job.source.grid.width)) as scene:
        preprocess = create_preprocess_of(model, scene, None)
        for index, block in enumerate(job.blocks):
            places = batches(job.lattice.rows_of_windows(block), job.batch_size)
            ready = []
            for batch in places:
                read = [scene.read((top * 8, left * 8, side, side)).arrays["s2"] for top, left in batch]
                ready.append(preprocess({"s2": torch.from_numpy(np.stack(read))}))
            windows = sum(map(len, places))

            both: dict[str, Callable[[], Any]] = {
                "embed": partial(compute_shard, job, index),
                "model": partial(_encode, model, ready),
            }
            for what in sorted(both, reverse=index % 2 == 0):  # who comes first changes from round to round
                cpu, wall = _took(both[what])
                if index:  # the first is the warm-up
                    held[what].append({"windows": windows, "cpu": cpu, "wall": wall})
    return held


def _encode(model: rsb.Backbone, batches_of_images: list[Any]) -> None:
    with torch.inference_mode():
        for images in batches_of_images:
            model.forward_features(images)


def _took(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the CPU seconds and the seconds that something takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure_engines(folder: Path, name: str, *, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Measure the tasks of one job on several engines, two at a time, one thread each; the first of each
    process is left out.
    """
    model = create(name)
    side, cells = model.config.image_sides[0], 96
    tasks = WORKERS * (rounds + 1)
    path = write_scene(folder / "engines.tif", side, tasks * cells * model.stride)
    spawn = get_context("spawn")
    held: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        engines: dict[str, Executor] = {
            "serial": stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)),
            "pool": stack.enter_context(ProcessPoolExecutor(WORKERS, mp_context=spawn)),
            "dask": stack.enter_context(local_workers(WORKERS)),
            "dask, its own settings": stack.enter_context(_plain_dask()),
        }
        jobs = {
            engine: prepared(planned(model, path, folder / f"{i}.zarr", shard=cells, threads=1))
            for i, engine in enumerate(engines)
        }  # fmt: skip
        for step in range(rounds + 1):
            for engine, executor in engines.items():
                count = 1 if engine == "serial" else WORKERS
                mine = range(step * count, (step + 1) * count)
                done = [executor.submit(timed_shard, jobs[engine], i) for i in mine]
                seen = {task["process"] for task in held.get(engine, [])}
                for task in (future.result() for future in done):
                    held.setdefault(engine, []).append(task | {"first": task["process"] not in seen})
                    seen.add(task["process"])
    return held


@contextmanager
def _plain_dask() -> Iterator[Executor]:
    """Start Dask workers with the settings that Dask has for them."""
    distributed: Any = import_module("distributed")
    with (
        distributed.LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor(pure=False)


def measure_whole(folder: Path, pixels: int) -> dict[str, Any]:
    """Measure a run of a store and one of ``embed_scene``: the small model, of which all else is the most."""
    model = create(SMALL)
    torch.set_num_threads(1)
    path = write_scene(folder / "whole.tif", pixels, pixels)
    rsb.embed.embed_scene(model, write_scene(folder / "warm.tif", 256, 256), folder / "warm_map.tif",
                          progress=False)  # fmt: skip
    job = planned(model, path, folder / "whole.zarr", threads=1)
    scene = _took(lambda: rsb.embed.embed_scene(model, path, folder / "map.tif", progress=False))
    sample = _took(lambda: prepare(job, None))
    summary: dict[str, Any] = {}
    tasks = _took(lambda: summary.update(rsb.embed.run(job, progress=False)))
    windows = len(job.lattice.tops) * len(job.lattice.lefts)
    return {
        "pixels": pixels, "windows": windows, "windows_of_tasks": summary["windows"],
        "windows_of_sample": min(windows, 256), "scene_cpu": scene[0], "sample_cpu": sample[0],
        "tasks_cpu": tasks[0],
    }  # fmt: skip


def measure_borders(pixels: int = 10980) -> dict[str, Any]:
    """Count the windows of a scene of Sentinel-2, and those of all its shards."""
    cells, counts = pixels // 8, {}
    lattice = Lattice(cells, cells, 15, 6)
    once = len(lattice.tops) * len(lattice.lefts)
    for shard in (128, 256, 512):
        starts = range(0, cells, shard)
        touching = sum(sum(t < s + shard and t + 15 > s for t in lattice.tops) for s in starts)
        counts[str(shard)] = touching**2 / once - 1
    return {"pixels": pixels, "windows": once, "twice": counts}


def measure_memory(folder: Path) -> dict[str, Any]:
    """Measure the peak of a task of 256 x 256 cells, of CROMA-B's width; a block of two layers, for time."""
    model = create(MODEL, overrides={"depth": 2})
    path = write_scene(folder / "memory.tif", 2048 + 512, 2048 + 512)
    options: dict[str, Any] = {"threads": 1, "cache_bytes": 64 * 2**20}
    warm = prepared(planned(model, path, folder / "warm.zarr", shard=32, **options))
    job = prepared(planned(model, path, folder / "memory.zarr", **options))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return dict(executor.submit(peak_of_shard, warm, job, 0).result())


# -- what 8 bits lose --------------------------------------------------------------------------------------


def trained(name: str) -> rsb.Backbone:
    """Return a small model with its bundled weights."""
    return rsb.create_model(name, pretrained=True, modalities=("s2",))


def real_scene(data: Path) -> Path:
    """Return the Sentinel-2 scene: a chip of Sen1Floods11, 512 x 512 pixels, Spain."""
    return data / "geotiff" / "Spain_7370579_S2Hand.tif"


def measure_bytes(folder: Path, data: Path) -> dict[str, int]:
    """Measure the objects of a store by rule."""
    model, sizes = trained(SMALL), {}
    for rule in RULES:
        output = folder / f"bytes_{rule}.zarr"
        rsb.embed.run(rsb.embed.plan(model, real_scene(data), output, quantize=rule), progress=False)
        sizes[rule] = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return sizes


def measure_rules(data: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Measure what each rule loses, by family: its numbers are of one half of the patches, the loss of the
    other half.
    """
    with np.load(data / "s2l2a_unlabelled_1200.npz") as held:
        images, bands = held["images"], tuple(map(str, held["bands"]))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in TRAINED:
        model = trained(name)
        preprocess = rsb.create_preprocess(model, bands={"s2": bands})
        vectors = []
        with torch.inference_mode():
            for batch in np.array_split(images, 24):
                x = torch.from_numpy(batch.astype(np.float32))
                maps = model.forward_features(preprocess({"s2": x})).maps("s2")
                vectors.append(maps.permute(0, 2, 3, 1).flatten(1, 2).float().numpy())
        halves = [np.concatenate(vectors)[i::2].reshape(-1, maps.shape[1]) for i in range(2)]
        found[name] = {rule: Quantization.of_sample(rule, halves[0]).measure(halves[1]) for rule in RULES}
    return found


def measure_search(folder: Path, data: Path, queries: int = 50) -> dict[str, Any]:
    """Measure how well one cell of water finds the water that is not connected to it: the area under the ROC
    curve against cells without water. Cells are water, or not, where the labels say so of all their pixels.
    """
    model = trained(SMALL)
    output = folder / "search.zarr"
    rsb.embed.run(rsb.embed.plan(model, real_scene(data), output), progress=False)
    with np.load(data / "sen1floods11" / "Spain_7370579.npz") as held:
        truth = held["label"]
    cells = truth[: truth.shape[0] // 8 * 8, : truth.shape[1] // 8 * 8]
    cells = cells.reshape(cells.shape[0] // 8, 8, -1, 8)
    water, dry = (cells == 1).all((1, 3)), (cells == 0).all((1, 3))
    bodies, _ = label(water, np.ones((3, 3)))
    places = np.argwhere(water)
    places = places[np.random.default_rng(SEED).permutation(len(places))[:queries]]
    features = np.moveaxis(rsb.embed.open(output)["embeddings"].values, 0, -1)
    scores: dict[str, list[float]] = {}
    for center in CENTERS:
        searched = Searched(output, center=center)
        for row, column in places:
            hits = searched.search([features[row, column]], k=1)
            others = water & (bodies != bodies[row, column])
            seen = others | dry
            assert hits.similarities is not None
            scores.setdefault(center, []).append(
                float(roc_auc_score(others[seen], hits.similarities[0][seen]))
            )
    return {
        "cells": int(water.size), "water": int(water.sum()), "bodies": int(bodies.max()),
        "queries": len(places), "auc": {center: statistics.mean(values) for center, values in scores.items()},
    }  # fmt: skip


def main() -> None:
    """Measure, and write the record and the tables."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round, smaller models and scenes")
    parser.add_argument(
        "--threads", type=int, default=all_cores(), metavar="N",
        help="of the encoding; with a load of others more than one wait for each other",
    )  # fmt: skip
    parser.add_argument("--docs-only", action="store_true", help="write the tables of the record")
    options = parser.parse_args()
    if not options.docs_only:
        command = " ".join(["python -m benchmarks.embed", *sys.argv[1:]])
        plan, data = QUICK if options.quick else FULL, Path(os.environ["RSB_DATA"])
        with tempfile.TemporaryDirectory() as folder:
            for found in measure(Path(folder), plan, threads=options.threads, data=data):
                write_text(RECORDED, json.dumps({"command": command, **found}, indent=1) + "\n")
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    write_text(PAGE, in_docs(PAGE.read_text(encoding="utf-8"), found))
    print(tables(found))


if __name__ == "__main__":
    main()
