"""Rows of all processes, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient is the sum, over processes, of what each sends to a process's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(x: Tensor) -> Tensor:
    """[M, ...] of this process to [W * M, ...] of all W processes, in order of rank.

    Every process has as many rows. Gradients flow to all of them: where processes average the gradients
    of their parameters, a loss on gathered rows has the gradient of one process with all rows. Without
    ``torch.distributed`` the rows are returned as they are.
    """
    if not dist.is_initialized():
        return x
    rows: Tensor = _GatherRows.apply(x.contiguous())
    return rows


def first_row(x: Tensor) -> int:
    """Return where this process's rows begin among the gathered ones."""
    return dist.get_rank() * len(x) if dist.is_initialized() else 0
