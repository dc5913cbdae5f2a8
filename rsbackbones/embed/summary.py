"""What the records of a job say in total, and what is left to do when all tasks are done."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsbackbones.embed.cog import write_cog
from rsbackbones.embed.driver import JobError
from rsbackbones.embed.geometry_table import listed
from rsbackbones.embed.job import Job
from rsbackbones.embed.points_task import part_key
from rsbackbones.embed.stac import write_stac
from rsbackbones.embed.task import WEIGHTS, done_key
from rsbackbones.files.objects import Objects

# Above this share of clipped values the range of the sample does not fit the scene.
_CLIPPED = 1e-3
# What is known of rasters that were left out before the job began.
_WHEN_PLANNED = "when the job was planned it, or another raster of its tile, could not be read"
_SUMS = ("cells", "cells_with_data", "clipped", "windows", "seconds", "model_seconds", "waited_seconds")


def finish(job: Job) -> dict[str, Any]:
    """Add up the records, and delete the weights, which the output does not need.

    Raises:
        JobError: geometries have no data, and that is an error; or the output of a finished job is gone.
    """
    if (summary := job.records.get_json("finished.json")) is not None:
        if job.group is None:
            require_output(job.output, job.records)
        _delete_working_files(job)  # a driver may have been killed right before
        return dict(summary)
    found = [job.records.get_json(done_key(i)) for i in range(job.tasks)]
    summary = {"shards": len(found), **sum_up(found, job.dim), "measured": job.calibration["measured"]}
    absent = dict.fromkeys(job.facts["source"].get("left_out", ()), _WHEN_PLANNED)
    summary["left_out"] = absent | summary["left_out"]
    share = summary["clipped_share"]
    if share > _CLIPPED:
        print(
            f"{share:.2%} of the values were outside of the range of the sample and are clipped: choose "
            "another seed, or another rule (--quantize)",
            file=sys.stderr,
        )
    if job.points is not None and job.group is None:
        summary |= finish_table([job])
    if job.is_cog:
        write_cog(job, Path(job.output))
    if job.group is None:
        write_stac(job.output, [(job, summary)])
    job.records.put_json("finished.json", summary)
    _delete_working_files(job)
    return summary


def _delete_working_files(job: Job) -> None:
    """Delete what tasks read, and the store from which a COG is made."""
    job.records.delete(WEIGHTS)
    if job.points is not None:
        job.points.discard(job.records)
    if job.is_cog:
        for key in list(job.objects.keys()):
            job.objects.delete(key)


def require_output(output: str, records: Objects) -> None:
    """Refuse a finished job whose output was deleted.

    Raises:
        JobError: it was.
    """
    there = Objects(output)
    if not (there.local is not None and there.local.exists()) and next(there.keys(), None) is None:
        raise JobError(
            f"the job of {output} is finished, and the output is gone; to compute it again, delete "
            f"{records.place} as well"
        )


def sum_up(found: list[dict[str, Any]], dim: int) -> dict[str, Any]:
    """Add up records of shards, or summaries of zones."""
    total = {key: sum(record[key] for record in found) for key in _SUMS}
    busy = total["model_seconds"] + total["waited_seconds"]
    pairs: dict[str, dict[str, set[str]]] = {}
    for record in found:
        for day, others in record.get("pairs", {}).items():
            for m, days in others.items():
                pairs.setdefault(day, {}).setdefault(m, set()).update(days)
    return {
        **{k: round(v, 3) for k, v in total.items()},
        "clipped_share": total["clipped"] / max(1, total["cells_with_data"] * dim),
        "waited_share": round(total["waited_seconds"] / busy, 4) if busy else 0.0,
        "left_out": {name: reason for record in found for name, reason in record.get("left_out", {}).items()},
        "pairs": {day: {m: sorted(d) for m, d in sorted(o.items())} for day, o in sorted(pairs.items())},
    }


def finish_table(jobs: Sequence[Job]) -> dict[str, Any]:
    """Make the part files of a job, or of those of zones, the table; say how many rows it has.

    A local folder gets its name. In a bucket parts are where they belong, and the record that the job is
    finished makes them a table.

    Raises:
        JobError: geometries have no data, and that is an error.
    """
    points = [job.points for job in jobs if job.points is not None]
    records = [job.records.get_json(done_key(i)) for job in jobs for i in range(job.tasks)]
    missing = [name for record in records for name in record["missing"]]
    if missing and points[0].on_missing == "fail":
        raise JobError(
            f"without a cell with data: {listed(missing)}. All others are done; leave these out, for another "
            "output, or keep them with embeddings of NaN: the same with on_missing='nan' (--on-missing nan)"
        )
    if (beside := Objects(jobs[0].output).beside(".job").local) is not None:
        _give_name(jobs, beside / "parts")
    return {"geometries": sum(one.facts["count"] for one in points), "missing": len(missing)}


def _give_name(jobs: Sequence[Job], whole: Path) -> None:
    """Put all part files into one folder, without what a killed driver left, and give it its name."""
    for job in jobs:
        parts = job.objects.local
        assert parts is not None
        for path in (parts / part_key(job, i) for i in range(job.tasks)):
            if parts != whole and path.exists():  # a driver was killed here where some are moved already
                whole.mkdir(exist_ok=True)
                path.rename(whole / path.name)
    if whole.exists():  # it has its name already where a driver was killed here
        expected = {part_key(job, i) for job in jobs for i in range(job.tasks)}
        for path in whole.iterdir():
            if path.name not in expected:
                path.unlink()
        whole.rename(jobs[0].output)
