"""Items of several UTM zones: a job for each zone. Its features are a group of one store, or its geometries
are parts of one table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsbackbones.embed.driver import JobError, driving, of_another_job, of_no_job, one_error, start_over
from rsbackbones.embed.job import Job
from rsbackbones.embed.stac import write_stac
from rsbackbones.embed.status import ZONES, status_of
from rsbackbones.embed.store import create_groups
from rsbackbones.embed.summary import finish_table, require_output, sum_up
from rsbackbones.files.objects import Objects


@dataclass(frozen=True)
class ZonedJob:
    """What :func:`rsbackbones.embed.plan` makes of items in several UTM zones.

    Attributes:
        output: the store, or the table.
        zones: by group (``utm32``, ``utm32s`` in the south) the job of the items of that zone, on their grid.
    """

    output: str
    zones: Mapping[str, Job]

    @property
    def records(self) -> Objects:
        """The records of the whole, beside the output; those of a zone are within, by its group."""
        return Objects(self.output).beside(".job")

    @property
    def memory_bound(self) -> dict[str, int]:
        """That of the zone that needs the most; see :attr:`rsbackbones.embed.Job.memory_bound`."""
        return max((job.memory_bound for job in self.zones.values()), key=lambda bound: sum(bound.values()))


def jobs_of(job: Job | ZonedJob) -> list[Job]:
    """Return the jobs of zones, or the one that there is."""
    return list(job.zones.values()) if isinstance(job, ZonedJob) else [job]


def run_zones(job: ZonedJob, run: Callable[[Job], dict[str, Any]], *, take_over: bool) -> dict[str, Any]:
    """Run the jobs of zones, one after the other, and describe them together.

    Raises:
        JobError: of a zone, which it names; or as of one job.
    """
    records = job.records
    with one_error(job.output), driving(records, job.output, take_over=take_over) as lease:
        _prepare(job)
        found = {}
        for zone, one in job.zones.items():
            lease.check()
            try:
                found[zone] = run(one)
            except ValueError as error:
                raise JobError(f"{zone}: {error}") from error
        if (summary := records.get_json("finished.json")) is not None:
            require_output(job.output, records)
            return dict(summary)
        of_table = finish_table(list(job.zones.values())) if _is_table(job) else {}
        measured = [part["measured"] for part in found.values()]
        summary = sum_up(list(found.values()), next(iter(job.zones.values())).dim) | {
            "shards": sum(part["shards"] for part in found.values()),
            # Those of the zone that loses most.
            "measured": {name: (min if name == "neighbor_agreement" else max)(m[name] for m in measured)
                         for name in measured[0]},
            "zones": found,
            **of_table,
        }  # fmt: skip
        write_stac(
            job.output,
            [
                (one.calibrated(one.records.get_json("calibration.json")), found[zone])
                for zone, one in job.zones.items()
            ],
        )
        records.put_json("finished.json", summary)
        return summary


def _prepare(job: ZonedJob) -> None:
    """Make the record of all zones and their empty groups, or take up those that are there."""
    records = job.records
    stated = {
        "shards": {zone: one.tasks for zone, one in job.zones.items()},
        "fingerprints": {zone: one.fingerprint for zone, one in job.zones.items()},
    }
    held = records.get_json(ZONES)
    if held not in (None, stated) and not any(_has_begun(records.within(zone)) for zone in held["shards"]):
        # As of one zone: a job that was refused at its sample computed nothing.
        start_over(records)
        records.put_json(ZONES, held := stated)
    if held is None and records.get_json("job.json") is not None:  # of one grid
        if records.get_json("calibration.json") is not None:
            raise of_another_job(job.output, records)
        start_over(records)
    if held is None and _is_taken(job):
        raise of_no_job(job.output)
    if held is None and not records.create_json(ZONES, stated):
        held = records.get_json(ZONES)
    if held not in (None, stated):
        raise of_another_job(job.output, records)
    if not _is_table(job):
        create_groups(job.output, list(job.zones))


def replace_zones(output: str, records: Objects) -> None:
    """Make room for a job of one grid where one of zones computed nothing.

    Raises:
        JobError: it did, or somebody runs it.
    """
    held = records.get_json(ZONES)
    if held is None:
        return
    if any(_has_begun(records.within(zone)) for zone in held["shards"]):
        raise of_another_job(output, records)
    if output.rstrip("/").endswith(".zarr"):
        Objects(output).delete("zarr.json")  # of the empty groups
    start_over(records)


def _is_taken(job: ZonedJob) -> bool:
    """Tell whether the output holds something."""
    if _is_table(job) and Path(job.output).exists():
        return True
    return next(Objects(job.output).keys(), None) is not None


def _is_table(job: ZonedJob) -> bool:
    return next(iter(job.zones.values())).points is not None


def _has_begun(records: Objects) -> bool:
    """Tell whether a job is past its sample, or somebody runs it."""
    return records.get_json("calibration.json") is not None or status_of(records).driver is not None
