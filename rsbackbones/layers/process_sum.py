"""The sum over all processes of a training run, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce (sum). Its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


def world_size() -> int:
    """Return the number of processes; 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all processes; without ``torch.distributed``, ``x`` itself."""
    if world_size() == 1:
        return x
    total: Tensor = _SumOverProcesses.apply(x)
    return total
