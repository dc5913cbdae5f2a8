"""Items of several UTM zones: a job for each zone, whose features are a group of one store."""

from collections.abc import Mapping
from dataclasses import dataclass

from rsbackbones.embed.job import Job


@dataclass(frozen=True)
class ZonedJob:
    """What :func:`rsbackbones.embed.plan` makes of items in several UTM zones.

    Attributes:
        output: the store.
        zones: by group (``utm32``, ``utm32s`` in the south) the job of the items of that zone, on their grid.
    """

    output: str
    zones: Mapping[str, Job]

    @property
    def memory_bound(self) -> dict[str, int]:
        """That of the zone that needs the most; see :attr:`rsbackbones.embed.Job.memory_bound`."""
        return max((job.memory_bound for job in self.zones.values()), key=lambda bound: sum(bound.values()))


def jobs_of(job: Job | ZonedJob) -> list[Job]:
    """Return the jobs of zones, or the one that there is."""
    return list(job.zones.values()) if isinstance(job, ZonedJob) else [job]
