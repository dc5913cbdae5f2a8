"""Plan a job: check the model, the source and the options, and find the grid. No pixel is read."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from rsbackbones.data.class_masks import ClassMasks
from rsbackbones.data.raster_grid import Grid
from rsbackbones.device import choose_device
from rsbackbones.embed.inputs import create_preprocess_of, require_images, sensors_of, warn_of_pixel_sizes
from rsbackbones.embed.job import CHUNK, DTYPES, Job
from rsbackbones.embed.lattice import Lattice, map_shape, window_sides, window_unit
from rsbackbones.embed.points import ON_MISSING, Points
from rsbackbones.embed.quantize import check_rule
from rsbackbones.embed.sources.arrays import LARGE_ARRAY, ArraySource
from rsbackbones.embed.sources.rasters import RasterSource
from rsbackbones.embed.sources.source import ReadOptions, Source, UnreadableItems
from rsbackbones.embed.sources.stac_items import is_items, open_items
from rsbackbones.embed.sources.stac_reader import Sign
from rsbackbones.embed.sources.stac_sensors import items_by_zone
from rsbackbones.embed.sources.stac_source import StacSource
from rsbackbones.embed.sources.zarr_store import ZarrSource
from rsbackbones.embed.stac import times_of
from rsbackbones.embed.zones import ZonedJob
from rsbackbones.files.objects import Objects, is_url
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.zoo.fingerprint import weights_digest

# Of zones: geometries are shared out among them when the maps of all are known.
_LATER = object()
# How a GeoTIFF can state what its integers mean.
COG_RULES = ("per-band", "none")


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
) -> Job | ZonedJob:
    """Plan the features of a scene as a store of shards, or those of geometries as a table. No pixel is read.

    Items of several UTM zones, without ``grid``, are a job for each zone: a group ``utmNN`` of the store has
    the features of the zone's items on their grid. A geometry is embedded from one zone: that whose map
    covers most of it, of equal ones one with items there (:meth:`rsbackbones.embed.points.Points.of_zones`).

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
            GeoTIFF, of the rules ``per-band`` and ``none``; with ``points`` a path or URL in ``.parquet``.
        variable: of a Zarr store, if it holds several arrays of bands.
        bands, units, nodata, mask, resample: as for :func:`rsbackbones.embed.embed_scene`. A mask of an array
            is one of its bands.
        composite, grid, dates, sign: of STAC items, see
            :class:`rsbackbones.embed.sources.stac_source.StacSource`.
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
    if points is not None and model.consumes == "series":
        raise ValueError(
            f"{model.architecture} encodes series of dates, and geometries take models of images; embed a "
            "store (.zarr), and read it at the geometries"
        )
    if points is not None and composite == "none":
        raise ValueError(
            "geometries have one embedding each, of one image of the dates: choose another composite than "
            "'none', such as median (--composite median)"
        )
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
    if not isinstance(found, StacSource):
        require_images(model)
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
    if device is None:
        device = model.device_and_dtype()[0]
    else:
        choose_device(device)
    job = Job(
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
        model=model,
    )
    if points is None or points is _LATER:
        return job
    return _with_points(job, Points.of(points, job.grid, on_missing))


def _plan_zones(model: Backbone, zones: Mapping[str, Any], place: str, options: dict[str, Any]) -> ZonedJob:
    points = options["points"]
    if points is None and not place.rstrip("/").endswith(".zarr"):
        raise ValueError(
            f"the items lie in several UTM zones ({', '.join(zones)}), which are groups of a .zarr; for "
            f"{place} choose one grid: grid='utm10m' (--grid utm10m) or a GeoBox"
        )
    jobs: dict[str, Job] = {}
    for zone, items in zones.items():
        try:
            job = plan(model, items, place, **(options | {"points": None if points is None else _LATER}))
        except ValueError as error:
            raise ValueError(f"{zone}: {error}") from error
        assert isinstance(job, Job)
        jobs[zone] = replace(job, group=zone)
    if points is not None:
        grids = {zone: job.grid for zone, job in jobs.items()}
        footprints = {zone: cast(StacSource, job.source).footprints for zone, job in jobs.items()}
        shared = Points.of_zones(points, grids, options["on_missing"], footprints)
        spans = any(len(set(times_of(jobs[zone]))) > 1 for zone in shared)
        jobs = {zone: _with_points(jobs[zone], own, spans=spans) for zone, own in shared.items()}
    return ZonedJob(Objects(place).place, jobs)


def _with_points(job: Job, points: Points, *, spans: bool = False) -> Job:
    """Return a job with its geometries; ``spans``: some zone has several dates, and all get their columns."""
    facts = points.facts | ({"spans": True} if spans else {})
    facts = json.loads(json.dumps(facts))
    return replace(job, points=replace(points, facts=facts), facts=job.facts | {"points": facts})


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
        if not place.endswith(".parquet"):
            raise ValueError(f"embeddings of geometries go to a .parquet, got {place}")
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


def _grid_facts(grid: Grid) -> dict[str, Any]:
    return {"height": grid.height, "width": grid.width, "crs": grid.crs.to_wkt(),
            "transform": list(grid.transform[:6])}  # fmt: skip


def _contract(model: Backbone, modality: str) -> dict[str, Any]:
    spec = model.inputs.get(modality)
    return {} if spec is None else {"unit": spec.unit, "normalize": spec.normalize, "product": spec.product}
