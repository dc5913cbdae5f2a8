"""What a measurement of speed was made on."""

import os
from typing import Any

import torch

from benchmarks import memory
from rsbackbones.files.environment import environment, processor


def all_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return :func:`environment`, processor and memory, and how busy it was just before (1 minute's load)."""
    return environment() | {
        "cpu": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": all_cores(),
        "memory_bytes": memory.total(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
