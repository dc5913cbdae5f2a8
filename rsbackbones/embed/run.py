"""Run a job: here, or on any ``concurrent.futures.Executor``; what is done stays done.

``OUTPUT.job`` beside the output holds the records: ``job.json`` (what the job is), ``driver.json`` (who runs
it), ``calibration.json``, ``ready.json`` (the metadata of the store are written), the weights while the job
is unfinished, and a record of each shard that is done, or that failed.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from rsbackbones.embed.counted import counted
from rsbackbones.embed.driver import (
    DEAD_S,
    JobError,
    driving,
    of_another_job,
    of_no_job,
    one_error,
    one_line,
    start_over,
    store_errors,
)
from rsbackbones.embed.job import Job
from rsbackbones.embed.points_task import check_points, compute_group
from rsbackbones.embed.store import create_store
from rsbackbones.embed.summary import finish
from rsbackbones.embed.task import WEIGHTS, calibrate, compute_shard
from rsbackbones.embed.zones import ZonedJob, replace_zones, run_zones
from rsbackbones.files.progress import progress_bar

# So many tasks are handed to an executor at a time: there may be millions.
_IN_FLIGHT = 64


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
        return run_zones(
            job, lambda one: run(one, executor, take_over=take_over, progress=progress), take_over=take_over
        )
    with one_error(job.output), driving(job.records, job.output, take_over=take_over) as lease:
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
                    with suppress(*store_errors()):  # the disk may be full: the error itself is raised
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
        return finish(job)


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
        start_over(records)
        held = None
    if held is None and job.group is None:
        replace_zones(job.output, records)
    if held is None:
        if _is_taken(job):
            raise of_no_job(job.output)
        if not records.create_json("job.json", stated):
            held = records.get_json("job.json")
    if held is not None and held != stated:
        theirs, ours = held["facts"], job.facts
        other = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
        raise of_another_job(job.output, records, f" ({', '.join(other)})")
    if records.get_json("finished.json") is None and WEIGHTS not in set(records.keys()):
        _store_weights(job)
    if job.points is not None and records.get_json("finished.json") is None:
        job.points.write(records)
    calibration = records.get_json("calibration.json")
    if calibration is None:
        prepared = calibrate if job.points is None else check_points
        calibration = prepared(job) if executor is None else _result(executor.submit(prepared, job))
        records.create_json("calibration.json", calibration)
        calibration = records.get_json("calibration.json")  # as whoever goes on reads it, in its order
    job = job.calibrated(calibration)
    if records.get_json("ready.json") is None and records.get_json("finished.json") is None:
        if job.points is None:
            create_store(job)
        records.put_json("ready.json", {})
    return job


def _is_taken(job: Job) -> bool:
    """Tell whether the output holds something, although there is no record of the job."""
    if job.group is not None and job.points is not None:
        return False  # zones have one table, and the whole was looked at
    return next(job.objects.keys(), None) is not None or (job.is_local and Path(job.output).exists())


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
    return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {one_line(error)}"


def _failure(job: Job, failed: dict[int, str], done: int) -> str:
    first, reason = next(iter(failed.items()))
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return (
        f"{job.task_name} {first}{more} failed ({job.place_of(first)}): {reason}. Done and kept: {done} of "
        f"{counted(job.tasks, job.task_name)}; the same call goes on"
    )
