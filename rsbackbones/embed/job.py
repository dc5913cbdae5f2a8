"""A job: which model, which pixels, which lattice of windows, and where the features go. No pixel is read."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rsbackbones.data.class_masks import ClassMasks
from rsbackbones.data.raster_grid import Grid
from rsbackbones.device import choose_device
from rsbackbones.embed.array_source import LARGE_ARRAY, ArraySource, ZarrSource
from rsbackbones.embed.inputs import create_preprocess_of, sensors_of, warn_of_pixel_sizes
from rsbackbones.embed.lattice import Block, Lattice, map_shape, window_sides, window_unit
from rsbackbones.embed.points import GROUP, ON_MISSING, Points
from rsbackbones.embed.quantize import Quantization, check_rule
from rsbackbones.embed.sources import RasterSource, ReadOptions, Source, UnreadableItems
from rsbackbones.embed.stac_items import is_items, open_items
from rsbackbones.embed.stac_reader import Sign
from rsbackbones.embed.stac_source import StacSource, items_by_zone
from rsbackbones.files.objects import Objects, is_url
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.zoo.fingerprint import weights_digest

if TYPE_CHECKING:
    from rsbackbones.embed.zones import ZonedJob

# The side of the chunks within a shard, in cells; a reader of one point reads one of them.
CHUNK = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How a GeoTIFF can state what its integers mean.
COG_RULES = ("per-band", "none")
# What a block of rows is read in, in pixels: files are opened once for each.
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Job:
    """What :func:`plan` makes and :func:`rsbackbones.embed.run.run` computes.

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
        group: of the store, where zones have groups.
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
            return self.records.within("parts")
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
        return self.is_cog or self.points is not None

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
        return _grid_of_cells(self.source.grid, self.lattice, self.cell)

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
        return {
            "model": 2 * self.facts["model"]["bytes"],
            "pixels": strip + batches + made,
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


def plan(
    model: nn.Module,
    source: Any,
    output: str | os.PathLike[str],
    *,
    variable: str | None = None,
    bands: Sequence[Sequence[str] | None] | None = None,
    units: Mapping[str, str] | None = None,
    nodata: float | None = None,
    mask: ClassMasks | None = None,
    resample: str | None = None,
    composite: str = "median",
    grid: Any = None,
    dates: str | None = None,
    sign: Sign | None = None,
    on_unreadable: str = "fail",
    stream: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    points: Any = None,
    on_missing: str = "fail",
    quantize: str | None = None,
    shard: int = 256,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    cache_bytes: int = 256 * 2**20,
    seed: int = 0,
) -> "Job | ZonedJob":
    """Plan the features of a scene as a store of shards, or those of geometries as a table. No pixel is read.

    Items of several UTM zones, without ``grid``, are a job for each zone: a group ``utmNN`` of the store has
    the features of the zone's items on their grid.

    A task computes one shard: it reads its own pixels with what the windows around need, computes all windows
    of the scene's lattice that touch it, blends, quantizes, and writes the shard and then its record. The
    result depends on neither the engine nor the size of a shard (but for rounding of the model in its last
    bits), and is that of :func:`rsbackbones.embed.embed_scene` within half a step of the quantization.

    With ``points`` the output is GeoParquet 1.1, a folder of part files: a row for each geometry, with the
    columns of :mod:`rsbackbones.embed.points`. A task is a group of up to 256 geometries near each other, and
    windows that no geometry needs are not computed.

    Args:
        model: from ``create_model``. One of series takes STAC items with ``composite="none"``.
        source: rasters of one place, tiles of a mosaic, or folders of them (paths, URLs, names for GDAL); an
            ``xarray.DataArray`` (band, y, x) or a Dataset of bands; the path or URL of a Zarr store
            (``.zarr``); or STAC items: of ``pystac``, of a search, or the path of a JSON file of them
            or of a STAC GeoParquet.
        output: a path or URL (``s3://...``) that ends in ``.zarr``, or a local ``.tif``: a Cloud Optimized
            GeoTIFF, of the rules ``per-band`` and ``none``; with ``points`` a local ``.parquet``.
        variable: of a Zarr store, if it holds several arrays of bands.
        bands, units, nodata, mask, resample: as for :func:`rsbackbones.embed.embed_scene`. A mask of an array
            is one of its bands.
        composite, grid, dates, sign: of STAC items, see :class:`rsbackbones.embed.stac_source.StacSource`.
        on_unreadable: ``fail``, or ``skip``: STAC items, or tiles of a mosaic, that cannot be read are left
            out of the tasks that need them, and named in their records. Servers are asked four times before.
        stream, window, overlap, batch_size: as there.
        points: geometries (Point, Polygon, MultiPolygon) in any CRS, a GeoDataFrame or the path of a file of
            them. Features are those of a store with ``quantize="none"``.
        on_missing: ``fail``: geometries outside of the source are refused, and ones without a cell with data
            are an error when all others are done; ``nan``: their embeddings are NaN.
        quantize: see :mod:`rsbackbones.embed.quantize`; default ``per-band`` of a store. Tables have float32.
        shard: its side in cells, a multiple of 32.
        device: of each worker: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``. Default: where the model
            is.
        dtype: of the weights of the model while it runs: ``float32``, ``bfloat16`` or ``float16``. Default:
            that of the model.
        threads: of torch in each task; default: as many as torch has here. Sums may differ in their last bit
            with their number.
        cache_bytes: of GDAL's block cache in each worker.
        seed: of the sample of windows that scales of quantization come from.

    Raises:
        ImportError: the extra ``scale`` is not installed.
        ValueError: pixels without a place north up, bands or sizes that do not fit, geometries that have none
            of them, or another output.
    """
    options = {k: v for k, v in locals().items() if k not in ("model", "source", "output")}
    model = unwrap_model(model)
    if grid is None and is_items(source):
        source = open_items(source, dates)
        if zones := items_by_zone(source, model):
            return _plan_zones(model, zones, os.fspath(output), options)
    if points is None and on_missing != "fail":
        raise ValueError(f"on_missing={on_missing!r} is of geometries: points=")
    if on_missing not in ON_MISSING:
        raise ValueError(f"on_missing must be one of {', '.join(ON_MISSING)}, got {on_missing!r}")
    if points is not None and quantize not in (None, "none"):
        raise ValueError(f"the features of geometries are float32; leave out quantize={quantize!r}")
    if points is not None and composite == "none":
        raise ValueError("geometries have one embedding each, of one image: another composite than 'none'")
    quantize = quantize or ("per-band" if points is None else "none")
    check_rule(quantize)
    if shard < CHUNK or shard % CHUNK:
        raise ValueError(f"shard must be a multiple of {CHUNK} cells, got {shard}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    own = str(model.device_and_dtype()[1]).removeprefix("torch.")
    dtype = own if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    place = os.fspath(output)
    _check_output(place, quantize, points is not None)
    reading = ReadOptions(bands, units, nodata, mask, resample)
    of_items = {"composite": composite, "grid": grid, "dates": dates, "sign": sign,
                "on_unreadable": on_unreadable}  # fmt: skip
    found = _source(model, source, reading, variable, of_items)
    if model.consumes == "series" and not isinstance(found, StacSource):
        raise ValueError(
            f"{model.architecture} encodes series of dates, and the source has one date: pass STAC items, "
            "with composite='none' (--stac, --composite none)"
        )
    with suppress(UnreadableItems), found.open(model, (0, 0, 0, 0)) as scene:  # reads nothing
        create_preprocess_of(model, scene, units)
    if composite == "none" and model.consumes == "image" and not place.rstrip("/").endswith(".zarr"):
        raise ValueError(f"features of every date go to a .zarr, which has a time axis; got {place}")
    rows, columns = map_shape(model, found.grid.height, found.grid.width)
    side, shared = window_sides(model, window, overlap)
    cell = model.stride
    if left := [n - cells * cell for n, cells in ((found.grid.height, rows), (found.grid.width, columns))
                if n > cells * cell]:  # fmt: skip
        warnings.warn(
            f"the map does not cover the last {max(left)} pixels of a side; a model that pads does "
            "(create_model(..., pad=True), --pad)",
            stacklevel=2,
        )
    warn_of_pixel_sizes(model, {str(place): found.grid.pixel_in_meters})
    shard = min(shard, -(-max(rows, columns) // CHUNK) * CHUNK)
    entry = model.weights_entry
    stream = model.choose_stream(stream)
    lattice = Lattice(rows, columns, side // cell, shared // cell)
    geometries = None
    if points is not None:
        geometries = Points.of(points, _grid_of_cells(found.grid, lattice, cell), on_missing)
    facts: dict[str, Any] = {
        "model": {
            "architecture": model.architecture,
            "weights": entry.id if entry else None,
            "weights_sha256": entry.sha256 if entry else None,
            "license": entry.license if entry else None,
            "parameters_sha256": weights_digest(model),
            "bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
            "sensors": sensors_of(model),
            "bands": {m: list(b) for m, b in model.bands.items()},
            "inputs": {m: _contract(model, m) for m in model.modalities},
            "pad": model.pad,
            "own_dtype": own,
            "dtype": dtype,
            "window_unit": window_unit(model),
        },
        "stream": stream,
        "source": found.facts,
        "grid": _grid_facts(found.grid),
        "window": side,
        "overlap": shared,
        "stride": cell,
        "shard": shard,
        "quantize": quantize,
        "seed": seed,
    }
    if geometries is not None:
        facts["points"] = geometries.facts
    if device is None:
        device = model.device_and_dtype()[0]
    else:
        choose_device(device)
    return Job(
        output=Objects(place).place,
        source=found,
        facts=json.loads(json.dumps(facts)),
        lattice=lattice,
        cell=cell,
        shard=shard,
        stream=stream,
        dim=model.num_features,
        quantize=quantize,
        batch_size=batch_size,
        device=str(device),
        dtype=dtype,
        threads=threads or torch.get_num_threads(),
        cache_bytes=cache_bytes,
        seed=seed,
        points=geometries,
        model=model,
    )


def _plan_zones(model: Backbone, zones: Mapping[str, Any], place: str, options: dict[str, Any]) -> "ZonedJob":
    from rsbackbones.embed.zones import ZonedJob

    if not place.rstrip("/").endswith(".zarr"):
        raise ValueError(
            f"the items lie in several UTM zones ({', '.join(zones)}), which are groups of a .zarr; for "
            f"{place} choose one grid: grid='utm10m' (--grid utm10m) or a GeoBox"
        )
    jobs = {}
    for zone, items in zones.items():
        try:
            job = plan(model, items, place, **options)
        except ValueError as error:
            raise ValueError(f"{zone}: {error}") from error
        assert isinstance(job, Job)
        jobs[zone] = replace(job, group=zone)
    return ZonedJob(Objects(place).place, jobs)


def _check_output(place: str, quantize: str, of_points: bool) -> None:
    try:
        import obstore  # noqa: F401
        import odc.geo.xr  # noqa: F401
        import pystac  # noqa: F401
        import rio_cogeo  # noqa: F401
        import zarr  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"writing {place} needs the extra scale: pip install 'rsbackbones[scale]'"
        ) from error
    if of_points:
        if is_url(place) or not place.endswith(".parquet"):
            raise ValueError(f"embeddings of geometries go to a local .parquet, got {place}")
    elif place.endswith((".tif", ".tiff")):
        if is_url(place):
            raise ValueError(f"a COG is a local file, got {place}; a store (.zarr) may be in a bucket")
        if quantize not in COG_RULES:
            raise ValueError(f"a COG states a scale and an offset for each band: quantize must be one of "
                             f"{', '.join(COG_RULES)}, got {quantize!r}")  # fmt: skip
    elif not place.rstrip("/").endswith(".zarr"):
        raise ValueError(
            "features go to a .zarr, a COG to a .tif, and those of geometries (points=) to a .parquet, got "
            f"{place}"
        )


def _source(
    model: Backbone, source: Any, options: ReadOptions, variable: str | None, of_items: dict[str, Any]
) -> Source:
    if is_items(source):
        return StacSource(source, model, options, **of_items)
    on_unreadable = of_items.pop("on_unreadable")
    if given := [name for name, value in of_items.items() if value not in (None, "median")]:
        raise ValueError(f"{', '.join(given)}: only of STAC items, and the source is {type(source).__name__}")
    single = isinstance(source, (str, os.PathLike))
    several = (
        isinstance(source, Sequence) and source and all(isinstance(s, (str, os.PathLike)) for s in source)
    )
    if (single and not os.fspath(source).rstrip("/").endswith(".zarr")) or (several and not single):
        if variable is not None:
            raise ValueError(f"variable={variable!r} names an array of a Zarr store, and {source} is none")
        return RasterSource.of_paths(model, source, options, on_unreadable=on_unreadable)
    if on_unreadable != "fail":
        raise ValueError(f"on_unreadable={on_unreadable!r}: only of tiles of a mosaic and of STAC items")
    if single:
        return ZarrSource(os.fspath(source), model, options, variable=variable)
    if variable is not None:
        raise ValueError(f"variable={variable!r} names an array of a Zarr store, and {source} is none")
    if any(kind.__module__.partition(".")[0] == "xarray" for kind in type(source).__mro__):
        array = ArraySource.of_memory(source, model, options)
        if array.nbytes > LARGE_ARRAY:
            warnings.warn(
                f"the array of {array.nbytes / 2**20:.0f} MiB goes to the worker with every task; write it "
                "to Zarr and pass the path",
                stacklevel=3,
            )
        return array
    raise ValueError(
        "source must be paths of rasters, an xarray.DataArray or Dataset, or the path of a Zarr store, got "
        f"{type(source).__name__}; geometries over a source are points="
    )


def _grid_of_cells(grid: Grid, lattice: Lattice, cell: int) -> Grid:
    from rasterio import Affine

    t = grid.transform
    transform = Affine(t.a * cell, 0.0, t.c, 0.0, t.e * cell, t.f)
    return Grid(lattice.rows, lattice.columns, grid.crs, transform)


def _grid_facts(grid: Grid) -> dict[str, Any]:
    return {"height": grid.height, "width": grid.width, "crs": grid.crs.to_wkt(),
            "transform": list(grid.transform[:6])}  # fmt: skip


def _contract(model: Backbone, modality: str) -> dict[str, Any]:
    spec = model.inputs.get(modality)
    return {} if spec is None else {"unit": spec.unit, "normalize": spec.normalize, "product": spec.product}
