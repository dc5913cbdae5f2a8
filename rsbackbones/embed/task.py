"""The tasks of a job: the sample that its numbers come from, and one shard. Any worker can run them.

A worker gets the job without the model, and reads the weights from the records of the job, once in a process.
"""

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from rsbackbones.data.rasters import Array
from rsbackbones.device import choose_device
from rsbackbones.embed.composite import CompositeScene
from rsbackbones.embed.inputs import create_preprocess_of
from rsbackbones.embed.job import CHUNK, DTYPES, Job
from rsbackbones.embed.lattice import Blend, Block, batches
from rsbackbones.embed.pixels import Pixels, Scene
from rsbackbones.embed.quantize import Quantization
from rsbackbones.embed.scene_checks import check_values
from rsbackbones.embed.series_encoder import SeriesEncoder
from rsbackbones.embed.sources.source import Source, UnreadableItems, Window
from rsbackbones.embed.store import write_shard
from rsbackbones.embed.window_encoder import WindowEncoder
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import Preprocess
from rsbackbones.zoo.fingerprint import weights_digest

WEIGHTS = "model.safetensors"
# Rows of windows, each by its (top, left) in cells.
Rows = list[list[tuple[int, int]]]
# Of the sample: so many windows at least (all of a small scene), in groups of so many rows and columns.
SAMPLE_WINDOWS, _GROUP = 256, 4
# So many of their vectors count; so many pixels of a group are checked; so many times the groups are tried.
_SAMPLE_VECTORS, _CHECKED_PIXELS, _TRIES = 65_536, 65_536, 4

_COUNTS = ("cells", "cells_with_data", "clipped", "windows", "model_seconds", "waited_seconds")

_T = TypeVar("_T")
_models: dict[str, Backbone] = {}
_lock = threading.Lock()


def done_key(index: int) -> str:
    """Return the key of the record of a shard."""
    return f"done/{index:08d}.json"


def compute_shard(job: Job, index: int) -> dict[str, Any]:
    """Compute and write a shard, then its record; return the record. One that has a record is left alone."""
    return recorded(job, index, _write_block)


def recorded(job: Job, index: int, compute: Callable[[Job, int], dict[str, Any]]) -> dict[str, Any]:
    """Compute and write a task, then its record; return the record. One that has a record is left alone."""
    key = done_key(index)
    if (record := job.records.get_json(key)) is not None:
        return dict(record)
    begin = time.perf_counter()
    with settings(job):
        made = compute(job, index)
    record = {"shard": index, "seconds": round(time.perf_counter() - begin, 3), **made}
    # The same task of two workers has the same bytes; the first record stands.
    if not job.records.create_json(key, record):
        return dict(job.records.get_json(key))
    return record


def _write_block(job: Job, index: int) -> dict[str, Any]:
    block = job.blocks[index]
    made: dict[str, Any] = {"block": list(block), **dict.fromkeys(_COUNTS, 0)}
    for date, features, told in _features(job, block):
        stored, scales, clipped, has_data = _quantized(job.quantization, features)
        del features
        if has_data:
            write_shard(job, block, stored, scales, date)
        told |= {"cells": block.shape[0] * block.shape[1], "cells_with_data": has_data, "clipped": clipped}
        for name, value in told.items():
            if isinstance(value, dict):  # what was left out, or which dates go together
                made.setdefault(name, {}).update(value)
            else:
                made[name] += value
    return made


def calibrate(job: Job) -> dict[str, Any]:
    """Encode a sample of windows: the scales of quantization, what it loses, and whether values were checked.

    Raises:
        ValueError: no pixel of a small scene has data, or values that cannot be right.
    """
    places, enough = _places(job)
    pixels: list[Pixels] = []
    vectors: list[Array] = []
    with settings(job):
        model = model_of(job)
        for rows, of_date in places:
            place = job.lattice.covered(rows)
            window = pixels_of(job, place)

            def read_place(source: Source, window: Window = window) -> tuple[Pixels, Preprocess, Strips]:
                with source.open(model, window) as scene:
                    read = scene.read(window)
                    return read, create_preprocess_of(model, scene, job.units), Strips(scene, window, read)

            (read, preprocess, held), _ = without_unreadable(of_date, read_place)
            name = held.name
            pixels += _images(thinned(read, _CHECKED_PIXELS), is_series=job.is_series)
            if read.valid.any():
                check, preprocess.check = preprocess.check, False  # all places are checked together
                maps, _ = _encode_block(job, held, preprocess, place, rows)
                vectors.append(np.concatenate([found.reshape(-1, job.dim) for found in maps]))
                preprocess.check = check
            if len(vectors) == enough:
                break
        vectors = [found[np.isfinite(found).all(axis=1)] for found in vectors]
        checked = check_values(pixels, preprocess, whole=len(pixels) == len(places), name=name)
    sample = np.concatenate(vectors) if vectors else np.zeros((0, job.dim), np.float32)
    if not len(sample):
        raise ValueError(
            f"none of {len(pixels)} sampled places has a cell with data, so that nothing tells the range of "
            "the features; embed the part of the scene that has data, or choose another seed"
        )
    sample = sample[:: max(1, len(sample) // _SAMPLE_VECTORS)]
    quantization = Quantization.of_sample(job.quantize, sample)
    return {
        "quantization": quantization.as_json(),
        "measured": quantization.measure(sample),
        "sample": {"vectors": len(sample), "places": len(vectors), "seed": job.seed},
        "values_checked": checked,
    }


def _quantized(
    quantization: Quantization, features: Array
) -> tuple[Array, npt.NDArray[np.float32] | None, int, int]:
    """Return stored values, scales, how many values were clipped, and how many cells have data.

    Rows are done in turn: what a rule computes in between is small.
    """
    stored = np.empty(features.shape, quantization.dtype)
    scales = np.empty(features.shape[:2], np.float32) if quantization.has_scales else None
    clipped = has_data = 0
    for top in range(0, len(features), CHUNK):
        rows = slice(top, top + CHUNK)
        stored[rows], of_rows, outside = quantization.encode(features[rows])
        if scales is not None and of_rows is not None:
            scales[rows] = of_rows
        clipped += outside
        has_data += int((~np.isnan(features[rows]).any(axis=-1)).sum())
    return stored, scales, clipped, has_data


def _places(job: Job) -> tuple[list[tuple[Rows, Source]], int]:
    """Return groups of windows to take a sample from, in rows, each of a date where dates are encoded one by
    one, and how many groups with data are enough.
    """
    tops, lefts = job.lattice.tops, job.lattice.lefts
    groups = [
        [[(top, left) for left in s] for top in t]
        for t in (tops[i : i + _GROUP] for i in range(0, len(tops), _GROUP))
        for s in (lefts[i : i + _GROUP] for i in range(0, len(lefts), _GROUP))
    ]
    dates = [source for _, source in _dates(job)]
    enough, count = SAMPLE_WINDOWS // _GROUP**2, len(groups) * len(dates)
    if len(tops) * len(lefts) * len(dates) <= SAMPLE_WINDOWS:
        enough, order = count, np.arange(count)
    else:
        order = np.random.default_rng(job.seed).permutation(count)[: _TRIES * enough]
    return [(groups[i % len(groups)], dates[i // len(groups)]) for i in order], enough


def _dates(job: Job) -> list[tuple[int | None, Source]]:
    """Return what is encoded one by one: each date, or the one image or series that there is."""
    if job.encoded != "one by one":
        return [(None, job.source)]
    return [(i, cast(Any, job.source).on(day)) for i, day in enumerate(job.days)]


def _images(pixels: Pixels, *, is_series: bool) -> list[Pixels]:
    """Return the images of a series."""
    if not is_series:
        return [pixels]
    return [
        Pixels({m: image}, there, {})
        for m, x in pixels.arrays.items()
        for image, there in zip(x, pixels.counts[m], strict=True)
    ]


def thinned(pixels: Pixels, most: int) -> Pixels:
    """Return evenly spaced pixels, about so many at most, as copies: the others can go."""
    step = math.ceil((pixels.valid.size / most) ** 0.5)
    thin = slice(None, None, step)
    return Pixels(
        {m: x[..., thin, thin].copy() for m, x in pixels.arrays.items()},
        pixels.valid[thin, thin].copy(),
        {m: x[..., thin, thin].copy() for m, x in pixels.counts.items()},
    )


def _features(job: Job, block: Block) -> Iterator[tuple[int | None, Array, dict[str, Any]]]:
    """Yield the features [rows, columns, D] of a block, each with the place of its date on the time axis, if
    there is one, and what it took.
    """
    rows = job.lattice.rows_of_windows(block)
    model, window = model_of(job), pixels_of(job, job.lattice.covered(rows))

    def compute(source: Source) -> tuple[list[Array], dict[str, Any]]:
        with source.open(model, window) as scene:
            preprocess = create_preprocess_of(model, scene, job.units)
            preprocess.check = not job.calibration["values_checked"]
            maps, told = _encode_block(job, Strips(scene, window, at_once=job.rows_at_once), preprocess,
                                       block, rows)  # fmt: skip
            if isinstance(scene, CompositeScene) and scene.pairs:
                told["pairs"] = {
                    day: {m: sorted(days) for m, days in others.items()}
                    for day, others in scene.pairs.items()
                }
            return maps, told

    for date, source in _dates(job):
        (maps, told), left_out = without_unreadable(source, compute)
        told |= {"left_out": left_out} if left_out else {}
        for i in range(len(maps)):
            yield (i if job.encoded == "fused" else date), maps.pop(0), told
            told = {}


def without_unreadable(source: Source, compute: Callable[[Source], _T]) -> tuple[_T, dict[str, str]]:
    """Compute with all items, or without those that cannot be read; return these with the reasons."""
    left_out: dict[str, str] = {}
    while True:
        try:
            return compute(source), left_out
        except UnreadableItems as error:
            left_out |= error.reasons
            source = cast(Any, source).without(error.reasons)


def _encode_block(
    job: Job, scene: Scene, preprocess: Preprocess, block: Block, windows: Rows
) -> tuple[list[Array], dict[str, Any]]:
    """Return the map [rows, columns, D] of a block, or those of all dates where the model fuses dates."""
    blends = [Blend(job.lattice, block, job.dim) for _ in range(job.maps_at_once)]
    told = encode_into(job, scene, preprocess, blends, batches(windows, job.batch_size))
    return [blend.result() for blend in blends], told


def encode_into(
    job: Job, scene: Scene, preprocess: Preprocess, blends: list[Blend], todo: Rows
) -> dict[str, Any]:
    """Encode batches of windows, which go down, into a blend of each map; return what it took."""
    given = (model_of(job), scene, preprocess, job.stream, job.lattice)
    encoder = SeriesEncoder(*given, days=job.days_of_series) if job.is_series else WindowEncoder(*given)
    count = 0
    with closing(encoder.encode(todo, skip_empty=True)) as encoded:
        for batch in encoded:
            count += len(batch)
            for one in batch:
                maps = (x if job.is_series else x[None] for x in (one.values, one.has_data, one.counts))
                for blend, *of_date in zip(blends, *maps, strict=True):
                    blend.add(*one.place, *of_date)
    return {
        "windows": count,
        "model_seconds": round(encoder.seconds - encoder.waited, 3),
        "waited_seconds": round(encoder.waited, 3),
    }


def pixels_of(job: Job, block: Block) -> Window:
    """Return the window of pixels that the windows of a block read."""
    p, unit, grid = job.cell, job.facts["model"]["window_unit"], job.source.grid
    top, left = block.top * p, block.left * p
    bottom, right = (-(-n * p // unit) * unit for n in (block.bottom, block.right))
    return top, left, min(bottom, grid.height) - top, min(right, grid.width) - left


class Strips:
    """A scene read in blocks of whole rows of a window, each once, for windows that go down."""

    def __init__(self, scene: Scene, window: Window, read: Pixels | None = None, *, at_once: int = 0) -> None:
        self._scene, self._window, self._at_once = scene, window, at_once
        self.name, self.grid, self.bands = scene.name, scene.grid, scene.bands
        self.ignored, self.stated_units = scene.ignored, scene.stated_units
        self._top = self._bottom = window[0]
        self._held = read
        if read is not None:
            self._bottom += window[2]

    def read(self, window: Window) -> Pixels:
        """Read a window within that of the strips, not above one that was read before."""
        row, column, height, width = window
        first, left, rows, columns = self._window
        if self._held is not None and row > self._top:
            self._held = self._held.part(row - self._top, 0, self._bottom - row, columns)
            self._top = row
        while self._bottom < row + height:
            count = min(max(self._at_once, height), first + rows - self._bottom)
            assert count > 0, "a window reaches beyond what was planned"
            new = self._scene.read((self._bottom, left, count, columns))
            self._held = new if self._held is None else _stack(self._held, new)
            self._bottom += count
        assert self._held is not None
        return self._held.part(row - self._top, column - left, height, width)


def _stack(above: Pixels, below: Pixels) -> Pixels:
    return Pixels(
        {m: np.concatenate((x, below.arrays[m]), axis=-2) for m, x in above.arrays.items()},
        np.concatenate((above.valid, below.valid)),
        {m: np.concatenate((x, below.counts[m]), axis=-2) for m, x in above.counts.items()},
    )


def model_of(job: Job) -> Backbone:
    """Return the model on the device of the worker; one is kept in a process."""
    key = f"{job.fingerprint} {job.device}"
    with _lock:
        if key not in _models:
            facts = job.facts["model"]
            # The model of the caller stays as it is.
            model = (
                job.model if job.model is not None and facts["dtype"] == facts["own_dtype"] else _load(job)
            )
            _models.clear()
            _models[key] = model.to(choose_device(job.device), DTYPES[facts["dtype"]])
        return _models[key]


def _load(job: Job) -> Backbone:
    from rsbackbones.zoo.factory import create_model

    facts = job.facts["model"]
    local = job.records.local
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS if local is None else local / WEIGHTS
        if local is None:
            path.write_bytes(job.records.get(WEIGHTS) or b"")
        model = create_model(facts["architecture"], checkpoint=path, pad=facts["pad"])
    model = model.to(DTYPES[facts["own_dtype"]])
    if weights_digest(model) != facts["parameters_sha256"]:
        raise ValueError(f"the weights of {job.records.place} are not those that the job was planned with")
    return model


@contextmanager
def settings(job: Job) -> Iterator[None]:
    """Run with the threads and the cache of the job."""
    import rasterio

    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        with rasterio.Env(
            GDAL_CACHEMAX=job.cache_bytes,
            GDAL_DISABLE_READDIR_ON_OPEN="TRUE",
        ):
            yield
    finally:
        torch.set_num_threads(before)
