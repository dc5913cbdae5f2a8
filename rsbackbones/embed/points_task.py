"""The tasks of a job of geometries: whether values can be right, and one group, which is one part file."""

import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.embed.geometry_cells import Cells
from rsbackbones.embed.geoparquet import table_metadata, vector_column
from rsbackbones.embed.inputs import create_preprocess_of
from rsbackbones.embed.job import Job
from rsbackbones.embed.lattice import Blend, Block, batches
from rsbackbones.embed.pixels import Pixels
from rsbackbones.embed.points import CHECKED_PIXELS, Points
from rsbackbones.embed.quantize import Quantization
from rsbackbones.embed.scene_checks import check_values
from rsbackbones.embed.sources.source import Source
from rsbackbones.embed.stac import times_of
from rsbackbones.embed.store import provenance
from rsbackbones.embed.task import (
    Strips,
    encode_into,
    model_of,
    pixels_of,
    recorded,
    settings,
    thinned,
    without_unreadable,
)
from rsbackbones.preprocess import Preprocess

# Values are checked on CHECKED_PIXELS of so many windows, of so many groups at most.
_CHECKED_WINDOWS, _CHECKED_GROUPS = 64, 16

Windows = list[tuple[int, int]]


class _Means(NamedTuple):
    """Of the geometries of a group: [N, D] means, how many cells, how many of them have data, and sources."""

    vectors: npt.NDArray[np.float32]
    cells: npt.NDArray[np.int64]
    valid: npt.NDArray[np.int64]
    sources: list[str]


def part_key(job: Job, group: int) -> str:
    """Return the name of the part file of a group; those of zones are in one folder."""
    return f"part-{group:08d}.parquet" if job.group is None else f"part-{job.group}-{group:08d}.parquet"


def compute_group(job: Job, index: int) -> dict[str, Any]:
    """Compute and write the part file of a group, then its record; return the record."""
    return recorded(job, index, _write_group)


def check_points(job: Job) -> dict[str, Any]:
    """Check the values of a sample of windows together; return the calibration of a job of geometries.

    Raises:
        ValueError: values that cannot be right.
    """
    assert job.points is not None
    pixels: list[Pixels] = []
    rng, checked = np.random.default_rng(job.seed), False
    groups = rng.permutation(job.points.groups)[:_CHECKED_GROUPS]
    with settings(job):
        for group in groups:
            members = _cells(job, *Points.read(job.records, int(group)))
            windows = [w for _, _, needed in _blocks(job, members) for w in needed]
            most = -(-_CHECKED_WINDOWS // len(groups))
            for i in sorted(rng.permutation(len(windows))[:most]):
                (top, left), size = windows[i], job.lattice.size
                name, read, preprocess = _read(job, Block(top, left, top + size[0], left + size[1]))
                pixels.append(thinned(read, CHECKED_PIXELS // _CHECKED_WINDOWS))
        if pixels:
            checked = check_values(pixels, preprocess, whole=False, name=name)
    return {
        "quantization": Quantization("none").as_json(),
        "measured": {},
        "sample": {"windows": len(pixels), "seed": job.seed},
        "values_checked": checked,
    }


def _read(job: Job, block: Block) -> tuple[str, Pixels, Preprocess]:
    model, window = model_of(job), pixels_of(job, block)

    def read(source: Source) -> tuple[str, Pixels, Preprocess]:
        with source.open(model, window) as scene:
            return scene.name, scene.read(window), create_preprocess_of(model, scene, job.units)

    return without_unreadable(job.source, read)[0]


def _write_group(job: Job, index: int) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, shapes = Points.read(job.records, index)
    means, counts = _embed(job, _cells(job, table, shapes))
    times = [np.datetime64(time.replace(tzinfo=None), "ms") for time in times_of(job)]
    one = times[0] if len(set(times)) == 1 else None
    shares = means.valid / np.maximum(means.cells, 1)
    made: dict[str, Any] = {
        "crs": [str(job.grid.crs)] * len(table),
        "datetime": pa.array([one] * len(table), pa.timestamp("ms")),
    }
    assert job.points is not None
    if len(set(times)) > 1 or job.points.facts.get("spans"):
        for name, time in (("start_datetime", times[0]), ("end_datetime", times[-1])):
            made[name] = pa.array([time] * len(table), pa.timestamp("ms"))
    made |= {"source": means.sources, "cells": means.cells, "valid_share": shares,
             "embedding": vector_column(means.vectors)}  # fmt: skip
    for name, values in made.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    stated = _metadata(job)
    table = table.replace_schema_metadata({b"geo": table.schema.metadata[b"geo"], **stated})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    job.objects.put(part_key(job, index), buffer.getvalue())
    return {
        "geometries": len(table),
        "missing": [str(i) for i, n in zip(table["id"].to_pylist(), means.valid, strict=True) if not n],
        "cells": int(means.cells.sum()),
        "cells_with_data": int(means.valid.sum()),
        "clipped": 0,
        **counts,
    }


def _metadata(job: Job) -> dict[bytes, bytes]:
    facts = job.facts["model"]
    return table_metadata(
        facts["architecture"], facts["weights"], facts["parameters_sha256"], facts["bands"],
        {"stream": job.stream, "provenance": json.dumps(provenance(job))},
    )  # fmt: skip


def _cells(job: Job, table: Any, shapes: Sequence[Any]) -> list[Cells | None]:
    """Return the cells of each geometry; ``None``: it lies outside of the map."""
    inside = table["inside_share"].to_numpy()
    return [
        Cells(shape, job.grid, job.shard) if share > 0 else None
        for shape, share in zip(shapes, inside, strict=True)
    ]


def _blocks(job: Job, members: Sequence[Cells | None]) -> list[tuple[Block, list[int], Windows]]:
    """Return the blocks with cells of geometries: the rectangle of these, whose they are, and the windows."""
    near: dict[Block, list[int]] = {}
    for i, cells in enumerate(members):
        for block in cells.blocks if cells else ():
            near.setdefault(block, []).append(i)
    found = []
    for block, indices in sorted(near.items()):
        needed = np.zeros(block.shape, bool)
        own = []
        for i in indices:
            rows, columns = _within(members[i], block)
            needed[rows - block.top, columns - block.left] = True
            own += [i] if len(rows) else []
        if not own:
            continue
        down, across = np.flatnonzero(needed.any(1)), np.flatnonzero(needed.any(0))
        part = Block(block.top + int(down[0]), block.left + int(across[0]),
                     block.top + int(down[-1]) + 1, block.left + int(across[-1]) + 1)  # fmt: skip
        height, width = job.lattice.size
        windows = [
            (top, left)
            for row in job.lattice.rows_of_windows(part)
            for top, left in row
            if needed[max(top - block.top, 0) : top + height - block.top,
                      max(left - block.left, 0) : left + width - block.left].any()
        ]  # fmt: skip
        found.append((part, own, windows))
    return found


def _within(cells: Cells | None, block: Block) -> tuple[Array, Array]:
    assert cells is not None
    return cells.within(block)


def _embed(job: Job, members: Sequence[Cells | None]) -> tuple[_Means, dict[str, Any]]:
    """Return the means of geometries, and what they took. Blocks are done one by one."""
    total = np.zeros((len(members), job.dim))
    cells, valid = np.zeros((2, len(members)), np.int64)
    sources: list[dict[str, None]] = [{} for _ in members]
    took: dict[str, Any] = {"windows": 0, "model_seconds": 0.0, "waited_seconds": 0.0}
    left_out: dict[str, str] = {}
    p = job.cell
    for block, own, windows in _blocks(job, members):
        features, counts, bad = _features_at(job, block, windows)
        took = {name: round(took[name] + counts[name], 3) for name in took}
        left_out |= bad
        source = cast(Any, job.source).without(bad) if bad else job.source
        for i in own:
            rows, columns = _within(members[i], block)
            vectors = features[rows - block.top, columns - block.left]
            there = np.isfinite(vectors).all(axis=1)
            total[i] += vectors[there].sum(axis=0, dtype=np.float64)
            cells[i] += len(rows)
            valid[i] += int(there.sum())
            top, left = int(rows.min()), int(columns.min())
            window = (top * p, left * p, (int(rows.max()) + 1 - top) * p, (int(columns.max()) + 1 - left) * p)
            sources[i] |= dict.fromkeys(source.names(window))
    means = np.full(total.shape, np.nan)
    np.divide(total, valid[:, None], out=means, where=valid[:, None] > 0)
    if left_out:
        took["left_out"] = left_out
    return _Means(means.astype(np.float32), cells, valid, [";".join(names) for names in sources]), took


def _features_at(job: Job, block: Block, windows: Windows) -> tuple[Array, dict[str, Any], dict[str, str]]:
    """Return the features [rows, columns, D] of a block by some of its windows, what it took, and left out.

    Windows apart are read apart, so that pixels between them are not.
    """
    model, whole = model_of(job), pixels_of(job, _covered(job, windows))

    def compute(source: Source) -> tuple[Array, dict[str, Any]]:
        blend = Blend(job.lattice, block, job.dim)
        took: dict[str, Any] = {}
        with source.open(model, whole) as scene:
            preprocess = create_preprocess_of(model, scene, job.units)
            preprocess.check = not job.calibration["values_checked"]
            for near in _neighbors(job, windows):
                strips = Strips(scene, pixels_of(job, _covered(job, near)), at_once=job.rows_at_once)
                counts = encode_into(job, strips, preprocess, [blend], batches([near], job.batch_size))
                took = {name: value + took.get(name, 0) for name, value in counts.items()}
        return blend.result(), took

    (features, took), left_out = without_unreadable(job.source, compute)
    return features, took, left_out


def _covered(job: Job, windows: Windows) -> Block:
    tops, lefts = zip(*windows, strict=True)
    height, width = job.lattice.size
    return Block(min(tops), min(lefts), max(tops) + height, max(lefts) + width)


def _neighbors(job: Job, windows: Windows) -> list[Windows]:
    """Return windows in groups of those next to each other on the lattice, each group going down."""
    row = {top: i for i, top in enumerate(job.lattice.tops)}
    column = {left: i for i, left in enumerate(job.lattice.lefts)}
    rest = {(row[top], column[left]) for top, left in windows}
    groups = []
    while rest:
        reached = [min(rest)]
        rest -= {reached[0]}
        for i, j in reached:  # it grows
            more = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & rest
            rest -= more
            reached += sorted(more)
        groups.append([(job.lattice.tops[i], job.lattice.lefts[j]) for i, j in sorted(reached)])
    return groups
