"""Run a job: here, or on any ``concurrent.futures.Executor``; what is done stays done.

``OUTPUT.job`` beside the output holds the records: ``job.json`` (what the job is), ``driver.json`` (who runs
it), ``calibration.json``, ``ready.json`` (the metadata of the store are written), the weights while the job
is unfinished, and a record of each shard that is done, or that failed.
"""

import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from rsbackbones.embed.cog import write_cog
from rsbackbones.embed.job import Job
from rsbackbones.embed.points import listed
from rsbackbones.embed.points_task import check_points, compute_group
from rsbackbones.embed.stac import write_stac
from rsbackbones.embed.store import create_groups, create_store
from rsbackbones.embed.task import WEIGHTS, calibrate, compute_shard, done_key
from rsbackbones.embed.zones import ZonedJob
from rsbackbones.files.objects import Objects
from rsbackbones.files.progress import progress_bar

# So many tasks are handed to an executor at a time: there may be millions.
_IN_FLIGHT = 64
# A driver writes that it lives every so many seconds; one that did not for so long is taken for dead.
BEAT_S, DEAD_S = 15.0, 120.0
# Above this share of clipped values the range of the sample does not fit the scene.
_CLIPPED = 1e-3
# The record of a job of several zones; each has records of its own below.
_ZONES = "zones.json"
_SUMS = ("cells", "cells_with_data", "clipped", "windows", "seconds", "model_seconds", "waited_seconds")


class JobError(ValueError):
    """A job that could not be finished; what is done is kept, and the same call goes on."""


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


def run(
    job: Job | ZonedJob, executor: Executor | None = None, *, take_over: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Compute the shards of a job that have no record yet.

    Args:
        job: from :func:`rsbackbones.embed.plan`.
        executor: ``None`` computes here, one shard after the other. Else any executor whose workers see the
            output and the sources: ``distributed.Client(...).get_executor()``, or a ``ProcessPoolExecutor``
            with ``mp_context=multiprocessing.get_context("spawn")``.
        take_over: go on although another driver seems to run the job; that one stops.
        progress: show a progress bar.

    Returns:
        What the records say in total: shards, cells, clipped values, seconds.

    Raises:
        ImportError: the extra ``scale`` is not installed.
        JobError: (a ``ValueError``) the output is of another job, another driver runs it, shards failed, or
            the disk or bucket takes nothing.
    """
    _refuse_fork(executor)
    if isinstance(job, ZonedJob):
        return _run_zones(job, executor, take_over=take_over, progress=progress)
    with _one_error(job), _driving(job, take_over) as lease:
        job = prepare(job, executor)
        done = {int(key[5:13]) for key in job.records.keys("done/")}
        todo = [i for i in range(job.tasks) if i not in done]
        failed: dict[int, str] = {}
        with progress_bar(job.tasks, len(done), enabled=progress, unit=job.task_name) as bar:
            for index, outcome in _outcomes(job, todo, executor):
                lease.check()
                bar.update()
                if isinstance(outcome, BaseException):
                    failed[index] = _reason(outcome)
                    with suppress(*_store_errors()):  # the disk may be full: the error itself is raised
                        job.records.put_json(
                            f"failed/{index:08d}.json", {"shard": index, "reason": failed[index]}
                        )
                    if not _left_out(outcome):
                        raise JobError(_failure(job, {index: failed[index]}, len(done))) from outcome
                else:
                    done.add(index)
                    job.records.delete(f"failed/{index:08d}.json")
        if failed:
            raise JobError(_failure(job, failed, len(done)))
        return _finish(job)


def status(output: str | os.PathLike[str]) -> Status:
    """Return how far a job is, from its records alone.

    Raises:
        ValueError: there is no job for this output.
    """
    records = Objects(os.fspath(output)).beside(".job")
    zones = records.get_json(_ZONES)
    if zones is None and records.get_json("job.json") is None:
        raise ValueError(f"there is no job for {output}: {records.place} holds no record of one")
    if zones is None:
        return _status(records)
    parts = {zone: _status(records.within(zone), shards) for zone, shards in zones["shards"].items()}
    failed: dict[int, str] = {}
    first = 0
    for zone, part in parts.items():
        failed |= {first + i: f"{zone}, shard {i}: {reason}" for i, reason in part.failed.items()}
        first += part.total
    return Status(
        total=first,
        done=sum(part.done for part in parts.values()),
        failed=failed,
        driver=next((part.driver for part in parts.values() if part.driver), None),
        finished=records.get_json("finished.json") is not None,
    )


def _status(records: Objects, shards: int = 0) -> Status:
    """Return how far a job is; one that has not begun has so many shards."""
    stated = records.get_json("job.json") or {"shards": shards}
    keys = list(records.keys())
    failed = [records.get_json(key) for key in keys if key.startswith("failed/")]
    driver = records.get_json("driver.json")
    return Status(
        total=stated["shards"],
        done=sum(key.startswith("done/") for key in keys),
        failed={f["shard"]: f["reason"] for f in failed if f},
        driver=driver if driver and _alive(driver) else None,
        finished="finished.json" in keys,
    )


def _run_zones(
    job: ZonedJob, executor: Executor | None, *, take_over: bool, progress: bool
) -> dict[str, Any]:
    """Run the jobs of zones, one after the other, and describe them together."""
    records = Objects(job.output).beside(".job")
    stated = {
        "shards": {zone: one.tasks for zone, one in job.zones.items()},
        "fingerprints": {zone: one.fingerprint for zone, one in job.zones.items()},
    }
    held = records.get_json(_ZONES)
    output = Objects(job.output)
    if held not in (None, stated) and not any(_has_begun(records.within(zone)) for zone in held["shards"]):
        # As of one zone: a job that was refused at its sample computed nothing.
        for key in list(records.keys()):
            records.delete(key)
        records.put_json(_ZONES, held := stated)
    if held is None and (records.get_json("job.json") or next(output.keys(), None) is not None):
        raise JobError(f"{job.output} holds something that is no output of a job; choose another output, or "
                       "delete it")  # fmt: skip
    if held is None and not records.create_json(_ZONES, stated):
        held = records.get_json(_ZONES)
    if held not in (None, stated):
        raise JobError(f"{job.output} is the output of a job with other inputs or settings; delete it and "
                       f"{records.place}, or choose another output")  # fmt: skip
    create_groups(job.output, list(job.zones))
    found = {}
    for zone, one in job.zones.items():
        try:
            found[zone] = run(one, executor, take_over=take_over, progress=progress)
        except JobError as error:
            raise JobError(f"{zone}: {error}") from error
    if (summary := records.get_json("finished.json")) is not None:
        return dict(summary)
    measured = [part["measured"] for part in found.values()]
    summary = _sum_up(list(found.values()), next(iter(job.zones.values())).dim) | {
        "shards": sum(part["shards"] for part in found.values()),
        # Those of the zone that loses most.
        "measured": {name: (min if name == "neighbor_agreement" else max)(m[name] for m in measured)
                     for name in measured[0]},
        "zones": found,
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


def _has_begun(records: Objects) -> bool:
    """Tell whether a job is past its sample, or somebody runs it."""
    return records.get_json("calibration.json") is not None or _status(records).driver is not None


def _outcomes(
    job: Job, todo: list[int], executor: Executor | None
) -> Iterator[tuple[int, dict[str, Any] | BaseException]]:
    """Compute tasks; yield each with its record, or with what went wrong."""
    compute = compute_shard if job.points is None else compute_group
    if executor is None:
        for index in todo:
            try:
                yield index, compute(job, index)
            except Exception as error:
                yield index, error
        return
    waiting, running = iter(todo), dict[Future[Any], int]()
    try:
        while True:
            for index in islice(waiting, _IN_FLIGHT - len(running)):
                running[executor.submit(compute, job, index)] = index
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                index = running.pop(future)  # and lets go of the future: Dask keeps what is held
                try:
                    yield index, future.result()
                except (Exception, CancelledError) as error:
                    yield index, error
    finally:
        for future in running:
            future.cancel()
        wait(running, timeout=DEAD_S)


def prepare(job: Job, executor: Executor | None) -> Job:
    """Make the records and the empty store, or take up those that are there."""
    records = job.records
    stated = {"fingerprint": job.fingerprint, "shards": job.tasks, "facts": job.facts}
    held = records.get_json("job.json")
    if held not in (None, stated) and records.get_json("calibration.json") is None:
        # A job that was refused at its sample computed nothing, and another may take its place.
        for key in set(records.keys()) - {"driver.json"}:
            records.delete(key)
        held = None
    if held is None:
        if next(job.objects.keys(), None) is not None or (job.is_local and Path(job.output).exists()):
            raise JobError(
                f"{job.output} holds something that is no output of a job; choose another output, or delete "
                "it"
            )
        if not records.create_json("job.json", stated):
            held = records.get_json("job.json")
    if held is not None and held != stated:
        theirs, ours = held["facts"], job.facts
        other = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
        raise JobError(
            f"{job.output} is the output of a job with other inputs or settings ({', '.join(other)}); delete "
            f"it and {records.place}, or choose another output"
        )
    if records.get_json("finished.json") is None and WEIGHTS not in set(records.keys()):
        _store_weights(job)
    if job.points is not None and records.get_json("finished.json") is None:
        job.points.write(records)
    calibration = records.get_json("calibration.json")
    if calibration is None:
        prepared = calibrate if job.points is None else check_points
        calibration = prepared(job) if executor is None else _result(executor.submit(prepared, job))
        if not records.create_json("calibration.json", calibration):
            calibration = records.get_json("calibration.json")
    job = job.calibrated(calibration)
    if records.get_json("ready.json") is None and records.get_json("finished.json") is None:
        if job.points is None:
            create_store(job)
        records.put_json("ready.json", {})
    return job


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except ValueError:
        raise
    except Exception as error:
        raise JobError(f"the sample could not be encoded: {_reason(error)}") from error


def _store_weights(job: Job) -> None:
    from rsbackbones.zoo.saving import save_model

    if job.model is None:
        raise JobError(f"the job has no model and {job.records.place} no weights: plan it again")
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(job.model, Path(folder) / WEIGHTS)
        job.records.put(WEIGHTS, path.read_bytes())


def _finish(job: Job) -> dict[str, Any]:
    """Add up the records, and delete the weights, which the output does not need."""
    if (summary := job.records.get_json("finished.json")) is not None:
        return dict(summary)
    found = [job.records.get_json(done_key(i)) for i in range(job.tasks)]
    summary = {"shards": len(found), **_sum_up(found, job.dim), "measured": job.calibration["measured"]}
    absent = dict.fromkeys(job.facts["source"].get("left_out", ()), "unreadable when the job was planned")
    summary["left_out"] = absent | summary["left_out"]
    share = summary["clipped_share"]
    if share > _CLIPPED:
        print(
            f"{share:.2%} of the values were outside of the range of the sample and are clipped: choose "
            "another seed, or another rule (--quantize)",
            file=sys.stderr,
        )
    if job.points is not None:
        summary |= _finish_table(job, [name for record in found for name in record["missing"]])
    if job.is_cog:
        write_cog(job, Path(job.output))
    if job.group is None:
        write_stac(job.output, [(job, summary)])
    job.records.put_json("finished.json", summary)
    job.records.delete(WEIGHTS)
    if job.points is not None:
        job.points.discard(job.records)
    if job.is_cog:
        for key in list(job.objects.keys()):
            job.objects.delete(key)
    return summary


def _sum_up(found: list[dict[str, Any]], dim: int) -> dict[str, Any]:
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


def _finish_table(job: Job, missing: list[str]) -> dict[str, Any]:
    """Give the folder of part files its name; geometries without data are an error first, if they are one."""
    assert job.points is not None
    if missing and job.points.on_missing == "fail":
        raise JobError(
            f"{listed(missing)} have no cell with data. All others are done; leave these out, for another "
            "output, or keep them with embeddings of NaN: the same with on_missing='nan' (--on-missing nan)"
        )
    parts = job.objects.local
    if parts is not None and parts.exists():  # it has its name already where a driver was killed here
        parts.rename(job.output)
    return {"geometries": job.points.facts["count"], "missing": len(missing)}


class _Lease:
    """That this process is the driver of a job."""

    def __init__(self, records: Objects, stated: dict[str, Any]) -> None:
        self._records, self._stated = records, stated
        self._lost, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Refuse to go on where another driver has taken over."""
        if self._lost.is_set():
            raise JobError(f"another driver has taken over the job of {self._records.place}")

    def close(self) -> None:
        """Let others drive."""
        self._stop.set()
        self._thread.join()
        held = self._records.get_json("driver.json")
        if held is not None and held["id"] == self._stated["id"]:
            self._records.delete("driver.json")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(*_store_errors()):  # a store that does not answer now may answer at the next beat
                held = self._records.get_json("driver.json")
                if held is None or held["id"] != self._stated["id"]:
                    self._lost.set()
                    return
                self._records.put_json("driver.json", {**self._stated, "beat": time.time()})


def _store_errors() -> tuple[type[Exception], ...]:
    """Return what a folder or a bucket raises that cannot be written to or read."""
    from obstore.exceptions import BaseError

    return OSError, BaseError


@contextmanager
def _one_error(job: Job) -> Iterator[None]:
    """Turn what the output or the records raise into a message that says how to go on."""
    try:
        yield
    except _store_errors() as error:
        raise JobError(
            f"cannot write {job.output}, or the records beside it: {_one_line(error)}; what is done is "
            "kept: make room, or give access, and run the same again"
        ) from error


@contextmanager
def _driving(job: Job, take_over: bool) -> Iterator[_Lease]:
    records = job.records
    stated = {"id": uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "beat": time.time()}
    if not records.create_json("driver.json", stated):
        held = records.get_json("driver.json")
        if held is not None and _alive(held) and not take_over:
            raise JobError(
                f"another driver runs the job of {job.output} (process {held['pid']} on {held['host']}); "
                "wait until it ends, or take over: take_over=True (--take-over)"
            )
        records.put_json("driver.json", stated)
    lease = _Lease(records, stated)
    try:
        yield lease
    finally:
        lease.close()


def _alive(driver: dict[str, Any]) -> bool:
    """Tell whether a driver lives: of this machine by its process, of another by when it last wrote."""
    if driver["host"] == socket.gethostname():
        try:
            os.kill(driver["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
    return time.time() - float(driver["beat"]) < DEAD_S


def _refuse_fork(executor: Executor | None) -> None:
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "forked workers inherit threads of torch and of the store that do not run in them; start them "
            "anew: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn'))"
        )


def _left_out(error: BaseException) -> bool:
    """Tell whether the engine gave a task up, which others need not suffer from."""
    return type(error).__name__ == "KilledWorker"


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "a worker process died, and the pool with it; run the same again for what is left"
    if _left_out(error):
        return "its workers died, as often as the scheduler allows (out of memory?)"
    return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    """Return the message of an error in one line, without what obstore adds for its developers."""
    return " ".join(str(error).partition("Debug source:")[0].split())[:600]


def _failure(job: Job, failed: dict[int, str], done: int) -> str:
    first, reason = next(iter(failed.items()))
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return (
        f"{job.task_name} {first}{more} failed ({job.place_of(first)}): {reason}. {done} of {job.tasks} "
        f"{job.task_name}s are done and kept; the same call goes on"
    )
