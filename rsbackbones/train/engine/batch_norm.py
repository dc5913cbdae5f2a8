"""Whose statistics BatchNorm normalizes by: of a process's micro-batch, of groups of samples, or of all
processes.

Contrastive methods with BatchNorm need this stated (He et al., MoCo, CVPR 2020, section 3.3; Grill et al.,
BYOL, arXiv 2006.07733, appendix), and with it one process and many compute the same, as far as the choice
allows:

- ``local``: torch's own BatchNorm. Statistics are those of a process's micro-batch; they change with the
  number of processes, and the running statistics that are saved are the first process's.
- ``grouped``: statistics are those of every ``batch_norm_group`` consecutive rows of the micro-batch,
  whichever process holds them. The running statistics take the mean over the groups of all processes.
- ``sync``: statistics are those of the micro-batches of all processes together, and gradients go through
  them. This is torch's ``SyncBatchNorm``, which runs on CUDA only; here it runs anywhere.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsbackbones.train.engine.config import BatchNormMode
from rsbackbones.train.engine.errors import TrainingError

_KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def set_batch_norm(module: nn.Module, mode: BatchNormMode, group: int | None = None) -> None:
    """Set by whose statistics the BatchNorm of a module normalizes; parameters, buffers and names stay.

    Args:
        module: with torch's or timm's BatchNorm.
        mode: see above.
        group: rows of a group; an image of a series is a row.

    Raises:
        TrainingError: there is no BatchNorm to set, or one of an unknown class.
    """
    if mode == "local":
        return
    found = list(_batch_norms(module))
    if not found:
        raise TrainingError(
            f"batch_norm={mode}, and {type(module).__name__} has no BatchNorm: leave batch_norm at 'local'"
        )
    if unknown := [f"{name} ({type(norm).__name__})" for name, norm in found if type(norm) not in _KNOWN]:
        raise TrainingError(
            f"batch_norm={mode} cannot convert {', '.join(unknown[:8])}; known are "
            f"{', '.join(kind.__name__ for kind in _KNOWN)}: use one of them, or batch_norm=local"
        )
    for _, norm in found:
        # A subclass in place: whoever holds the module, its parameters or its hooks keeps them.
        norm.__class__ = type(f"Shared{type(norm).__name__}", (_SharedBatchNorm, type(norm)), {})
        norm.group = group if mode == "grouped" else None  # type: ignore[assignment]


def _batch_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm))


class _SharedBatchNorm(_BatchNorm):
    """BatchNorm by the statistics of groups of rows, or of all processes where ``group`` is ``None``."""

    group: int | None

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        y = self._normalize(x)
        if isinstance(self, BatchNormAct2d):
            y = self.act(self.drop(y))
        return y

    def _normalize(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same; statistics are computed in float32 at least."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = 1
        if self.group is not None:
            if len(x) % self.group:
                raise TrainingError(
                    f"batch_norm_group={self.group} does not divide the {len(x)} rows of a micro-batch: "
                    "choose "
                    "a divisor of batch_size / (processes x accumulate)"
                )
            groups = len(x) // self.group
        rows = wide.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)  # [G, C, N]
        count = rows.shape[2]
        if self.group is None:
            count *= _world_size()
            mean = _sum_over_processes(rows.sum(2)) / count
            var = _sum_over_processes((rows - mean[..., None]).square().sum(2)) / count
        else:
            var, mean = torch.var_mean(rows, dim=2, correction=0)
        if count < 2:
            raise TrainingError(f"BatchNorm needs more than 1 value per channel, got {list(x.shape)}")
        self._track(mean.detach(), var.detach() * (count / (count - 1)))
        scale = (var + self.eps).rsqrt()  # [G, C]
        normalized = (rows - mean[..., None]) * scale[..., None]
        if self.affine:
            normalized = normalized * self.weight[:, None] + self.bias[:, None]
        whole: Tensor = normalized.unflatten(2, (-1, *x.shape[2:])).transpose(1, 2).flatten(0, 1)
        return whole.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Take [G, C] statistics into the running ones, as torch does: the variance is the unbiased one."""
        if not self.training or not self.track_running_stats or self.running_mean is None:
            return
        assert self.num_batches_tracked is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        found = torch.stack((mean.mean(0), var.mean(0)))
        if self.group is not None and _world_size() > 1:
            dist.all_reduce(found)
            found /= _world_size()
        self.running_mean.lerp_(found[0].to(self.running_mean.dtype), share)
        self.running_var.lerp_(found[1].to(self.running_var.dtype), share)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is the sum of what all processes send to the result."""

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


def _sum_over_processes(x: Tensor) -> Tensor:
    if _world_size() == 1:
        return x
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
