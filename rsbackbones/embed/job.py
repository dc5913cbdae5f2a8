"""A job: which model, which pixels, which lattice of windows, and where the features go."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from rsbackbones.data.raster_grid import Grid
from rsbackbones.embed.lattice import Block, Lattice
from rsbackbones.embed.points import CHECKED_PIXELS, GROUP, Points
from rsbackbones.embed.quantize import Quantization
from rsbackbones.embed.sources.source import Source
from rsbackbones.files.objects import Objects, is_url
from rsbackbones.models.backbone import Backbone

# The side of the chunks within a shard, in cells; a reader of one point reads one of them.
CHUNK = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What a block of rows is read in, in pixels: files are opened once for each.
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Job:
    """What :func:`rsbackbones.embed.plan` makes and :func:`rsbackbones.embed.run.run` computes.

    A task is one shard of a store, or a group of geometries of a table.

    Attributes:
        output: where the features go.
        source: where the pixels come from.
        facts: what decides the result, as JSON takes it.
        lattice: of the windows over the scene.
        cell: the side of a cell in pixels.
        shard: the side of a shard in cells.
        stream: the features of the model.
        quantize: the rule, see :mod:`rsbackbones.embed.quantize`.
        batch_size: windows encoded at a time.
        device: of the worker.
        dtype: of the model.
        threads: of torch in a task.
        cache_bytes: of GDAL in a worker.
        seed: of the sample that scales of quantization come from.
        points: the geometries of a table; ``None`` of a store.
        calibration: what :func:`rsbackbones.embed.task.calibrate` found; empty before.
        model: of the process that planned it; it is not pickled.
        group: of the store, or of the parts of a table, where zones have groups.
    """

    output: str
    source: Source
    facts: dict[str, Any]
    lattice: Lattice
    cell: int
    shard: int
    stream: str
    dim: int
    quantize: str
    batch_size: int
    device: str
    dtype: str
    threads: int
    cache_bytes: int
    seed: int
    points: Points | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    model: Backbone | None = None
    group: str | None = None

    @property
    def fingerprint(self) -> str:
        """The sha256 of what decides the result."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def objects(self) -> Objects:
        """Where tasks write; what becomes a local output at the end is kept with the records until then."""
        if self.points is not None:
            return self.records.within("parts") if self.is_local else Objects(self.output)
        if self.is_cog:
            return self.records.within("embeddings.zarr")
        return Objects(self.output) if self.group is None else Objects(self.output).within(self.group)

    @property
    def is_cog(self) -> bool:
        """Whether the output is a Cloud Optimized GeoTIFF."""
        return self.output.endswith((".tif", ".tiff"))

    @property
    def is_local(self) -> bool:
        """Whether the output is local, and comes into being when all tasks are done."""
        return self.is_cog or (self.points is not None and not is_url(self.output))

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return len(self.blocks) if self.points is None else self.points.groups

    @property
    def task_name(self) -> str:
        """What messages call a task."""
        return "shard" if self.points is None else "group"

    def place_of(self, task: int) -> str:
        """Return where a task lies, for messages."""
        if self.points is not None:
            return self.points.place_of(task)
        top, left, bottom, right = self.blocks[task]
        return f"rows {top} to {bottom}, columns {left} to {right}"

    @cached_property
    def records(self) -> Objects:
        """The records of the job, beside its output: ``OUTPUT.job``, or ``OUTPUT.job/GROUP``."""
        beside = Objects(self.output).beside(".job")
        return beside if self.group is None else beside.within(self.group)

    @property
    def units(self) -> Mapping[str, str] | None:
        """The units that the user named."""
        units: Mapping[str, str] | None = self.facts["source"]["units"]
        return units

    @property
    def blocks(self) -> list[Block]:
        """The cells of each shard, in rows."""
        rows, columns, side = self.lattice.rows, self.lattice.columns, self.shard
        return [
            Block(top, left, min(top + side, rows), min(left + side, columns))
            for top in range(0, rows, side)
            for left in range(0, columns, side)
        ]

    @property
    def encoded(self) -> str | None:
        """How dates are encoded: ``one by one``, ``fused`` or as ``series``; ``None``: there is one image."""
        dates = self.facts["source"].get("dates")
        return dates and str(dates["encoded"])

    @property
    def is_series(self) -> bool:
        """Whether all dates of a window are read and encoded together."""
        return self.encoded in ("series", "fused")

    @property
    def days_of_series(self) -> dict[str, list[str]]:
        """By modality the days that are read together; empty: images are read one by one."""
        return dict(self.facts["source"]["dates"]["days"]) if self.is_series else {}

    @property
    def maps_at_once(self) -> int:
        """How many maps a series gives at a time."""
        return len(self.days) if self.encoded == "fused" else 1

    @property
    def rows_at_once(self) -> int:
        """How many rows of pixels are read at a time, but for a window that is larger."""
        return 0 if self.is_series else ROWS_AT_ONCE

    @property
    def days(self) -> list[str]:
        """The time axis of the features; empty: they have none."""
        if self.encoded in (None, "series"):
            return []
        return list(next(iter(self.facts["source"]["dates"]["days"].values())))

    @property
    def grid(self) -> Grid:
        """Where the cells lie."""
        return grid_of_cells(self.source.grid, self.lattice, self.cell)

    @property
    def quantization(self) -> Quantization:
        """The rule with its numbers, once the job is calibrated."""
        return Quantization.from_json(self.calibration["quantization"])

    @property
    def memory_bound(self) -> dict[str, int]:
        """What a worker holds at most, in bytes, by part, beyond the libraries themselves."""
        bands = sum(map(len, self.facts["model"]["bands"].values()))
        masks = len(self.facts["source"]["mask"] or {})
        halo = [self.lattice.covered(self.lattice.rows_of_windows(block)) for block in self.blocks]
        p, unit = self.cell, self.facts["model"]["window_unit"]
        window = self.lattice.size[0] * p + unit
        width = max(h.shape[1] for h in halo) * p + unit
        # A strip of rows of windows: what is held, what is read after it, and both joined.
        layers = max(map(len, self.days_of_series.values()), default=1)
        rows = window + max(window, self.rows_at_once)
        strip = 2 * rows * width * layers * (bands * 4 + masks + 1)
        # What a composite makes, twice copied, beside a date. A median has one band of all dates: the values,
        # which are clear, and masks in between.
        composite = self.facts["source"].get("composite")
        of_date = 9 * self.source.layers if composite == "median" else 9
        made = rows * width * (3 * bands * 4 + of_date) if composite else 0
        batches = 4 * self.batch_size * (window + unit) ** 2 * layers * bands * 4
        cells = self.shard**2
        table = 0 if self.points is None else 3 * GROUP * self.dim * 8
        read = strip + batches
        if self.points is not None:  # the check of the values, which copies them, beside a window
            read = max(read, (6 * CHECKED_PIXELS + 4 * window**2) * (bands * 4 + masks + 1))
        return {
            "model": 2 * self.facts["model"]["bytes"],
            "pixels": read + made,
            # The sums, the stored values, the same in the order of the store, and the encoded shard.
            "features": table
            + cells * self.dim * (self.maps_at_once * 4 + 3 * Quantization(self.quantize).dtype.itemsize),
            "gdal_cache": self.cache_bytes,
        }

    def calibrated(self, calibration: dict[str, Any]) -> "Job":
        """Return the job with what its sample told."""
        return replace(self, calibration=calibration)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model and open stores behind: a worker reads the weights from the records of the job."""
        left = {"model": None}
        return {k: left.get(k, v) for k, v in self.__dict__.items() if k not in ("objects", "records")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what :meth:`__getstate__` kept."""
        self.__dict__.update(state)


def grid_of_cells(grid: Grid, lattice: Lattice, cell: int) -> Grid:
    """Return where the cells of a lattice lie, of so many pixels."""
    from rasterio import Affine

    t = grid.transform
    transform = Affine(t.a * cell, 0.0, t.c, 0.0, t.e * cell, t.f)
    return Grid(lattice.rows, lattice.columns, grid.crs, transform)
