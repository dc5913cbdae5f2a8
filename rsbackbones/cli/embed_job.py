"""What ``embed`` does for a store of shards: its options, and running the job here, on workers or on Dask."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import click

from rsbackbones.cli.options import COUNT, Decorator, option, together
from rsbackbones.data.raster_path import RasterPath

job_options: Decorator = together(
    option("--variable", metavar="NAME", section="Store", help="of a Zarr store: the array with the bands"),
    option("--quantize", type=click.Choice(("per-band", "per-vector", "alphaearth", "none", "float16")),
           section="Store", show_default="per-band",
           help="how features are stored in 8 bits, or in full (none) or half precision (float16)"),
    option("--shard", type=COUNT, default=256, metavar="CELLS", section="Store",
           help="side of a shard, which is a task: memory grows with its square"),
    option("--workers", type=COUNT, metavar="N", section="Store", show_default="in this process",
           help="compute with so many processes of this machine (Dask)"),
    option("--dask", metavar="ADDRESS", section="Store",
           help="compute on a running Dask cluster, tcp://scheduler:8786"),
    option("--take-over", is_flag=True, section="Store",
           help="go on although another driver seems to run the job; that one stops"),
    option("--status", is_flag=True, section="Store",
           help="only print what is done, left and failed, from the records of the job"),
    option("--cache", type=COUNT, default=256, metavar="MIB", section="Store",
           help="GDAL's block cache of each worker (GDAL_CACHEMAX)"),
)  # fmt: skip
# That only stores have, by option, with the value that stands for "not given".
_OF_STORES = {"variable": None, "workers": None, "dask": None, "take_over": False, "status": False}


def is_store(output: RasterPath) -> bool:
    """Tell whether an output is a store of shards."""
    return str(output).rstrip("/").endswith(".zarr")


def check_job_options(output: RasterPath, options: dict[str, Any]) -> None:
    """Refuse options of stores for other outputs, and two ways to compute.

    Raises:
        ValueError: one is given.
    """
    given = [name for name, absent in _OF_STORES.items() if options[name] != absent]
    given += [name for name in ("quantize",) if options[name] is not None]
    if given and not is_store(output):
        named = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{named}: of a store, --output NAME.zarr, got {output}")
    if options["workers"] and options["dask"]:
        raise ValueError("--workers (of this machine) and --dask (of a cluster) exclude each other")


def print_status(output: RasterPath) -> int:
    """Print how far a job is; return 0 if it is finished, else 1."""
    from rsbackbones.embed import status

    found = status(str(output))
    print(f"{found.done} of {found.total} shards done, {found.left} left, {len(found.failed)} failed")
    for index, reason in sorted(found.failed.items()):
        print(f"shard {index}: {reason}")
    if found.driver:
        print(f"run by process {found.driver['pid']} on {found.driver['host']}")
    print("finished" if found.finished else "not finished: the same command without --status goes on")
    return 0 if found.finished else 1


def run_job(model: Any, source: Any, output: RasterPath, options: dict[str, Any], **settings: Any) -> int:
    """Plan a job and run it; ``options`` are those of :data:`job_options`, ``settings`` those of ``plan``."""
    from rsbackbones.embed import plan, run

    progress = settings.pop("progress")
    workers = options["workers"] or 1
    job = plan(
        model, source, str(output), variable=options["variable"], quantize=options["quantize"] or "per-band",
        shard=options["shard"], cache_bytes=options["cache"] * 2**20,
        threads=1 if options["dask"] else max(1, (os.cpu_count() or 1) // workers), **settings,
    )  # fmt: skip
    parts = {name: size / 2**20 for name, size in job.memory_bound.items()}
    listed = ", ".join(f"{name.replace('_', ' ')} {size:.0f}" for name, size in parts.items())
    print(
        f"{len(job.blocks)} shards of {job.shard} x {job.shard} cells; memory of a worker beyond libraries: "
        f"at most {sum(parts.values()):.0f} MiB ({listed})",
        file=sys.stderr,
    )
    with _executor(options) as executor:
        summary = run(job, executor, take_over=options["take_over"], progress=progress)
    measured = summary["measured"]
    print(
        f"{job.quantize}: cosine error {measured['cosine_error_p99']:.2g} (99th percentile), "
        f"{measured['neighbor_agreement']:.1%} of 10 neighbors kept, {summary['clipped_share']:.3%} of "
        f"values clipped; the model waited {summary['waited_share']:.0%} of its time for pixels",
        file=sys.stderr,
    )
    print(job.output)
    return 0


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
