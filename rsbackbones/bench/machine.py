"""What a measurement was made on."""

import os
import platform
from typing import Any

import torch

import rsbackbones
from rsbackbones.files.environment import processor


def all_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return processor, memory, versions, and how busy the machine was just before (1 minute's load)."""
    linux = platform.system() == "Linux"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if linux else None
    return {
        "cpu": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": all_cores(),
        "memory_bytes": memory,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rsbackbones": rsbackbones.__version__,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
