"""The memory of this process and of the machine, in bytes. Linux only; elsewhere there is no answer."""

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> int | None:
    """Return the memory of this process now."""
    return _line(_STATUS, "VmRSS")


def peak() -> int | None:
    """Return the most that this process had, since its start or since :func:`forget_peak`."""
    return _line(_STATUS, "VmHWM")


def forget_peak() -> None:
    """Begin to watch the peak anew."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="utf-8")


def give_back() -> None:
    """Give what is freed, and kept for later, back to the system; where the allocator (glibc) does so."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _STATUS.exists() else None
    if trim is not None:
        trim(0)


def total() -> int | None:
    """Return the memory of the machine."""
    return _line(Path("/proc/meminfo"), "MemTotal")


def available() -> int | None:
    """Return the memory that the machine can still give without swapping."""
    return _line(Path("/proc/meminfo"), "MemAvailable")


def refuse_more_than_available() -> None:
    """Have allocations beyond what the machine can give now fail, rather than processes be killed."""
    if (left := available()) is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (left, left))


def _line(path: Path, name: str) -> int | None:
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
