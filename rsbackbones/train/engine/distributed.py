"""The process group: initialization, collectives for numbers and objects, signals, and its end."""

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
    """Rank, world size and device of this process. A single process has no group."""

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
            # A reduction of a CPU tensor needs no GPU, unlike dist.barrier().
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
    """Join the process group of a launcher (torchrun), or return the context of a single process.

    ``timeout`` in seconds limits how long other processes wait for one that hangs (torch's default is half an
    hour).
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
    # Numbers and objects are sent with gloo, so that reading a flag does not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    dist.init_process_group(backend, timeout=patience)
    return DistributedContext(dist.get_rank(), dist.get_world_size(), device, patience)


def die_with_parent() -> None:
    """Request a SIGTERM when the launcher dies (Linux): otherwise its workers would keep training."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


def destroy(processes: DistributedContext) -> None:
    """Destroy the process group after a successful run."""
    if dist.is_initialized():
        processes.barrier()
        dist.destroy_process_group()


def end_process(code: int = 0) -> NoReturn:
    """End a process of a group immediately, without the shutdown of the interpreter.

    After a group was destroyed, that shutdown sometimes aborts ("terminate called without an active
    exception", about 3 in 100). A launcher would report a failure, and an elastic one restart a finished run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class StopSignal:
    """Records SIGTERM and SIGINT, so that the step is finished and saved. A second SIGINT interrupts."""

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
