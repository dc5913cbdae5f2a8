"""Dask as the executor of jobs: processes of this machine, or a cluster that runs already.

Workers of this machine start with ``MALLOC_MMAP_THRESHOLD_``: Dask sets ``MALLOC_TRIM_THRESHOLD_`` for them,
after which glibc maps and unmaps the memory of every activation of a model (a hundred times the page
faults).
"""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

# A task that kills so many workers is given up.
MOST_KILLS = 3
_MMAP_THRESHOLD = 32 * 2**20


@contextmanager
def local_workers(count: int) -> Iterator[Executor]:
    """Start worker processes on this machine; yield an executor of them."""
    dask, distributed = _import()
    environ = dict(dask.config.get("distributed.nanny.pre-spawn-environ")) | {
        "MALLOC_MMAP_THRESHOLD_": _MMAP_THRESHOLD
    }
    settings = {
        "distributed.nanny.pre-spawn-environ": environ,
        "distributed.scheduler.allowed-failures": MOST_KILLS - 1,
        # A task that waits on a worker would count as killed with the one that runs there.
        "distributed.scheduler.worker-saturation": 1.0,
    }
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // count
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None,
            memory_limit=memory, silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client.get_executor(pure=False)


@contextmanager
def cluster_at(address: str) -> Iterator[Executor]:
    """Connect to the scheduler at an address, ``tcp://host:8786``; yield an executor of its workers.

    Raises:
        ValueError: nothing answers there.
    """
    _, distributed = _import()
    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, TimeoutError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        yield client.get_executor(pure=False)


def _import() -> tuple[Any, Any]:
    try:
        import dask
        import distributed
    except ImportError as error:
        raise ImportError("workers need Dask: pip install 'rsbackbones[scale]'") from error
    return dask, distributed
