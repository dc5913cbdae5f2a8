"""The process group: its beginning, its end, and how not to outlive its launcher."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class DistributedContext:
    """This process among all of them; one process has no group."""

    rank: int
    world_size: int
    device: torch.device
    timeout: timedelta = timedelta(minutes=10)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            # A reduction of a CPU tensor: unlike barrier() it needs no GPU.
            self.reduce([0.0])

    def reduce(self, values: Sequence[float], op: Any = dist.ReduceOp.MAX) -> list[float]:
        """Reduce numbers over all processes, in float64 on the CPU."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(tensor, op)
        reduced: list[float] = tensor.tolist()
        return reduced

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in the order of ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast_from_rank0(self, value: Any) -> Any:
        """Return the value of rank 0."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]


def init_distributed(timeout: float) -> DistributedContext:
    """Join the process group that a launcher started (torchrun), or be the only process.

    ``timeout`` is in seconds: torch's own half an hour is what a hanging process would cost the others.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:
        return DistributedContext(0, 1, device)
    die_with_parent()
    # Numbers and objects travel by gloo, so that reading a flag does not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    dist.init_process_group(backend, timeout=patience)
    return DistributedContext(dist.get_rank(), dist.get_world_size(), device, patience)


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the launcher dies: its workers would train on as orphans otherwise."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


def destroy(processes: DistributedContext) -> None:
    """Destroy the process group, after a run that ended well."""
    if dist.is_initialized():
        processes.barrier()
        dist.destroy_process_group()


def end_process(code: int = 0) -> NoReturn:
    """End a process of a group now, without Python's own way out.

    After a group has been left, the interpreter has been seen to abort while it shut down ("terminate called
    without an active exception", about 3 in 100): its launcher takes that for a failure, and an elastic one
    restarts a finished run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class StopSignal:
    """Notes SIGTERM and SIGINT, so that a step is finished and saved first. A second SIGINT interrupts."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
