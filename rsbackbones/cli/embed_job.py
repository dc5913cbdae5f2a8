"""What ``embed`` does for a store of shards: its options, and running the job here, on workers or on Dask."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import click

from rsbackbones.cli.options import COUNT, FILE, CommaList, Decorator, option, together
from rsbackbones.data.raster_path import RasterPath

job_options: Decorator = together(
    option("--stac", type=FILE, metavar="FILE", section="STAC",
           help="the source: STAC items, as a search saves them (.json), or STAC GeoParquet (.parquet); "
           "instead of rasters"),
    option("--search", metavar="URL", section="STAC",
           help="the source: the items that a STAC API finds by --collection, --bbox and --dates"),
    option("--collection", multiple=True, metavar="ID", section="STAC",
           help="of --search: the collection; repeatable"),
    option("--bbox", type=CommaList(click.FLOAT), metavar="W,S,E,N", section="STAC",
           help="of --search: where, in degrees"),
    option("--composite", type=click.Choice(("median", "least-cloudy", "first", "none")), section="STAC",
           show_default="median",
           help="one image of the dates: the median of clear pixels, or the first clear pixel, of dates by "
           "their cloud cover or in order; none: every date, or all dates for a model of series. "
           "--mask SCL=3,8,9,10 says what is clear"),
    option("--dates", metavar="FIRST/LAST", section="STAC",
           help="2024-06-01/2024-08-31: the days of the items to take"),
    option("--grid", metavar="utmNm", section="STAC", show_default="of the items",
           help="utm10m: the UTM zone of the items in pixels of 10 m; for items in several zones"),
    option("--sign", metavar="MODULE:FUNCTION", section="STAC",
           help="a function that takes an item and returns it with URLs that can be read, such as "
           "planetary_computer:sign; called where pixels are read"),
    option("--points", type=FILE, metavar="PLOTS.gpkg", section="Points",
           help="embed these geometries, for --output NAME.parquet: a row for each, with its columns and the "
           "mean over the cells of a polygon, or the cell of a point"),
    option("--on-missing", type=click.Choice(("fail", "nan")), section="Points", show_default="fail",
           help="geometries outside of the source or without data: stop and name them, or keep them with "
           "embeddings of NaN"),
    option("--variable", metavar="NAME", section="Store", help="of a Zarr store: the array with the bands"),
    option("--quantize", type=click.Choice(("per-band", "per-vector", "alphaearth", "none", "float16")),
           section="Store", show_default="per-band",
           help="how features are stored in 8 bits, or in full (none) or half precision (float16)"),
    option("--shard", type=COUNT, metavar="CELLS", section="Store", show_default="256",
           help="side of a shard, which is a task, a multiple of 32: memory grows with its square"),
    option("--workers", type=COUNT, metavar="N", section="Store", show_default="in this process",
           help="compute with so many processes of this machine (Dask)"),
    option("--dask", metavar="ADDRESS", section="Store",
           help="compute on a running Dask cluster, tcp://scheduler:8786"),
    option("--take-over", is_flag=True, section="Store",
           help="go on although another driver seems to run the job; that one stops"),
    option("--status", is_flag=True, section="Store",
           help="only print what is done, left and failed, from the records of the job"),
    option("--cache", type=COUNT, metavar="MIB", section="Store", show_default="256",
           help="GDAL's block cache of each worker (GDAL_CACHEMAX)"),
)  # fmt: skip
# That only jobs have, by option, with the value that stands for "not given".
_OF_STORES = {
    "variable": None,
    "shard": None,
    "cache": None,
    "workers": None,
    "dask": None,
    "take_over": False,
    "status": False,
    "stac": None,
    "search": None,
    "points": None,
}
_OF_STAC = ("composite", "dates", "grid", "sign")


def is_job(output: RasterPath, options: Mapping[str, Any]) -> bool:
    """Tell whether an output is of a job: a store of shards, a COG (a .tif with --quantize), or a table of
    geometries (a .parquet with --points, or of which the status is asked).
    """
    place = str(output).rstrip("/")
    if place.endswith(".parquet"):
        return options["points"] is not None or bool(options["status"])
    if options["points"] is not None:
        return False
    return place.endswith(".zarr") or (place.endswith((".tif", ".tiff")) and options["quantize"] is not None)


def check_job_options(output: RasterPath, options: dict[str, Any]) -> None:
    """Refuse options of stores for other outputs, and two ways to compute.

    Raises:
        ValueError: one is given.
    """
    given = [name for name, absent in _OF_STORES.items() if options[name] != absent]
    given += [name for name in ("quantize",) if options[name] is not None]
    if options["points"] is not None and not is_job(output, options):
        raise ValueError(f"--points: the result is a table, --output NAME.parquet, got {output}")
    if given and not is_job(output, options):
        listed = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"{listed}: only for --output NAME.zarr, a COG (NAME.tif with --quantize), or a table of "
            f"geometries (NAME.parquet with --points), got {output}"
        )
    if options["on_missing"] is not None and options["points"] is None:
        raise ValueError("--on-missing: only of geometries, --points PLOTS.gpkg")
    if options["stac"] is not None and options["search"] is not None:
        raise ValueError("--stac (a file of items) and --search (a STAC API) exclude each other")
    if not has_items(options) and (named := [f"--{name}" for name in _OF_STAC if options[name] is not None]):
        raise ValueError(f"{', '.join(named)}: only of STAC items, --stac FILE or --search URL")
    of_search = {"--collection": options["collection"], "--bbox": options["bbox"]}
    if options["search"] is None and (named := [name for name, value in of_search.items() if value]):
        raise ValueError(f"{', '.join(named)}: only of a STAC API, --search URL")
    if options["search"] is not None and not all(of_search.values()):
        raise ValueError("--search URL needs to know what and where: --collection ID --bbox W,S,E,N")
    if options["workers"] and options["dask"]:
        raise ValueError("--workers (of this machine) and --dask (of a cluster) exclude each other")


def has_items(options: Mapping[str, Any]) -> bool:
    """Tell whether the source is STAC items."""
    return options["stac"] is not None or options["search"] is not None


def items_of(options: Mapping[str, Any]) -> list[Any]:
    """Return the STAC items that the options name."""
    from rsbackbones.embed.sources.stac_items import open_items
    from rsbackbones.embed.sources.stac_search import search_items

    if options["stac"] is not None:
        return open_items(options["stac"], options["dates"])
    return search_items(options["search"], options["collection"], options["bbox"], options["dates"])


def print_status(output: RasterPath) -> int:
    """Print how far a job is; return 0 if it is finished, else 1."""
    from rsbackbones.embed import status
    from rsbackbones.embed.counted import counted

    found = status(str(output))
    task = "group" if str(output).endswith(".parquet") else "shard"
    print(f"{found.done} of {counted(found.total, task)} done, {found.left} left, {len(found.failed)} failed")
    for index, reason in sorted(found.failed.items()):
        print(f"{task} {index}: {reason}")
    if found.driver:
        print(f"run by process {found.driver['pid']} on {found.driver['host']}")
    print("finished" if found.finished else "not finished: the same command without --status goes on")
    return 0 if found.finished else 1


def run_job(model: Any, source: Any, output: RasterPath, options: dict[str, Any], **settings: Any) -> int:
    """Plan a job and run it; ``options`` are those of :data:`job_options`, ``settings`` those of ``plan``."""
    import torch

    from rsbackbones.embed import plan, run
    from rsbackbones.embed.counted import counted
    from rsbackbones.embed.zones import jobs_of

    progress = settings.pop("progress")
    workers = options["workers"] or 1
    if has_items(options):
        settings |= {
            "composite": options["composite"] or "median", "dates": options["dates"], "grid": options["grid"],
            "sign": _function(options["sign"]),
        }  # fmt: skip
    job = plan(
        model, source, str(output), variable=options["variable"], points=options["points"],
        on_missing=options["on_missing"] or "fail", quantize=options["quantize"],
        shard=options["shard"] or 256, cache_bytes=(options["cache"] or 256) * 2**20,
        threads=1 if options["dask"] else max(1, torch.get_num_threads() // workers), **settings,
    )  # fmt: skip
    jobs = jobs_of(job)
    parts = {name: size / 2**20 for name, size in job.memory_bound.items()}
    listed = ", ".join(f"{name.replace('_', ' ')} {size:.0f}" for name, size in parts.items())
    tasks = counted(sum(one.tasks for one in jobs), jobs[0].task_name)
    what = f"{tasks} of {jobs[0].shard} x {jobs[0].shard} cells"
    points = [one.points for one in jobs if one.points is not None]
    if points:
        count = sum(one.facts["count"] for one in points)
        what = f"{counted(count, 'geometry', 'geometries')} in {tasks}"
    print(
        f"{what}; memory of a worker beyond libraries: at most {sum(parts.values()):.0f} MiB ({listed})",
        file=sys.stderr,
    )
    with _executor(options) as executor:
        summary = run(job, executor, take_over=options["take_over"], progress=progress)
    waited = f"the model waited {summary['waited_share']:.0%} of its time for pixels"
    if points:
        count = counted(summary["geometries"], "geometry", "geometries")
        print(f"without data: {summary['missing']} of {count}; {waited}", file=sys.stderr)
        print(job.output)
        return 0
    measured = summary["measured"]
    print(
        f"{jobs[0].quantize}: cosine error {measured['cosine_error_p99']:.2g} (99th percentile), "
        f"{measured['neighbor_agreement']:.1%} of 10 neighbors kept, {summary['clipped_share']:.3%} of "
        f"values clipped; {waited}",
        file=sys.stderr,
    )
    print(job.output)
    return 0


def _function(name: str | None) -> Any:
    """Return the function that MODULE:FUNCTION names."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--sign expects MODULE:FUNCTION that can be imported, got {name}: {error}"
        ) from error


@contextmanager
def _executor(options: dict[str, Any]) -> Iterator[Executor | None]:
    from rsbackbones.embed.cluster import cluster_at, local_workers

    if options["dask"]:
        with cluster_at(options["dask"]) as executor:
            yield executor
    elif options["workers"]:
        with local_workers(options["workers"]) as executor:
            yield executor
    else:
        yield None
