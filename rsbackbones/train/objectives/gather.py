"""All-gather of rows, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """All-gather. The gradient of a process's rows is the sum of their gradients over all processes."""

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
    """Gather the rows [M, ...] of all W processes to [W * M, ...], in order of rank.

    Every process must have the same number of rows. Gradients flow to all rows: with averaged parameter
    gradients, a loss on gathered rows has the gradient of a single process with all rows. Without
    ``torch.distributed`` the rows are returned unchanged.
    """
    if not dist.is_initialized():
        return x
    rows: Tensor = _GatherRows.apply(x.contiguous())
    return rows


def first_row(x: Tensor) -> int:
    """Return the index of this process's first row among the gathered ones."""
    return dist.get_rank() * len(x) if dist.is_initialized() else 0
