"""What the worker processes of :mod:`benchmarks.embed` compute: a shard, and what it took."""

import os
import resource
import time
from typing import Any

from benchmarks import memory
from rsbackbones.embed.job import Job
from rsbackbones.embed.task import compute_shard


def timed_shard(job: Job, index: int) -> dict[str, Any]:
    """Compute a shard; return the process, its CPU seconds and page faults meanwhile, and the windows."""
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
    record = compute_shard(job, index)
    return {
        "process": os.getpid(),
        "cpu": time.process_time() - began,
        "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults,
        "windows": record["windows"],
    }


def peak_of_shard(warm: Job, job: Job, index: int) -> dict[str, Any]:
    """Compute a shard of a small job, so that all libraries are loaded; return what another then adds.

    ``peak`` is in bytes over what the process held before, ``bound`` what the job states, by part.
    """
    compute_shard(warm, 0)
    memory.give_back()
    before = memory.resident()
    memory.forget_peak()
    compute_shard(job, index)
    peak = memory.peak()
    grown = None if peak is None or before is None else peak - before
    return {"peak": grown, "bound": job.memory_bound}
