"""How far a job is, from its records alone."""

import os
from dataclasses import dataclass
from typing import Any

from rsbackbones.embed.driver import alive
from rsbackbones.files.objects import Objects

# The record of a job of several zones; each has records of its own below.
ZONES = "zones.json"


@dataclass(frozen=True)
class Status:
    """What the records of a job say of it: numbers of shards, and why some failed, by shard.

    ``driver`` is who runs the job, ``None``: nobody; ``finished``: the output is complete.
    """

    total: int
    done: int
    failed: dict[int, str]
    driver: dict[str, Any] | None
    finished: bool

    @property
    def left(self) -> int:
        """How many shards are neither done nor failed."""
        return self.total - self.done - len(self.failed)


def status(output: str | os.PathLike[str]) -> Status:
    """Return how far a job is, from its records alone.

    Raises:
        ValueError: there is no job for this output.
    """
    records = Objects(os.fspath(output)).beside(".job")
    zones = records.get_json(ZONES)
    if zones is None and records.get_json("job.json") is None:
        raise ValueError(f"there is no job for {output}: {records.place} holds no record of one")
    if zones is None:
        return status_of(records)
    parts = {zone: status_of(records.within(zone), shards) for zone, shards in zones["shards"].items()}
    task = "group" if os.fspath(output).endswith(".parquet") else "shard"
    failed: dict[int, str] = {}
    first = 0
    for zone, part in parts.items():
        failed |= {first + i: f"{zone}, {task} {i}: {reason}" for i, reason in part.failed.items()}
        first += part.total
    return Status(
        total=first,
        done=sum(part.done for part in parts.values()),
        failed=failed,
        driver=_driver(records),
        finished=records.get_json("finished.json") is not None,
    )


def status_of(records: Objects, shards: int = 0) -> Status:
    """Return how far a job is; one that has not begun has so many shards."""
    stated = records.get_json("job.json") or {"shards": shards}
    keys = list(records.keys())
    failed = [records.get_json(key) for key in keys if key.startswith("failed/")]
    return Status(
        total=stated["shards"],
        done=sum(key.startswith("done/") for key in keys),
        failed={f["shard"]: f["reason"] for f in failed if f},
        driver=_driver(records),
        finished="finished.json" in keys,
    )


def _driver(records: Objects) -> dict[str, Any] | None:
    """Return who runs a job."""
    driver = records.get_json("driver.json")
    return driver if driver and alive(driver) else None
