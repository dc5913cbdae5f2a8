"""The environment of a measurement: versions, machine, commit."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import rsbackbones


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return versions, those of other ``packages`` too, the machine, and the commit of a checkout."""
    return {
        "rsbackbones": rsbackbones.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """Return the name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the package's checkout; ``None`` for an installed package."""
    top = Path(rsbackbones.__file__).parents[1]
    if not (top / ".git").exists():
        return None
    commit = _git(top, "describe", "--always", "--abbrev=40")
    # Not `describe --dirty`, which locks and writes the index.
    changed = _git(top, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changed else commit or None


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of git, which takes no lock and runs no monitor that the repository names."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
