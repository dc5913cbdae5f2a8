"""The samples over which BatchNorm computes statistics: a micro-batch, groups of it, or all processes.

Contrastive methods with BatchNorm depend on this choice (He et al., MoCo, CVPR 2020, section 3.3; Grill et
al., BYOL, arXiv 2006.07733, appendix):

- ``local``: torch's own BatchNorm. Statistics are computed over the micro-batch of a process. They depend on
  the number of processes, and the running statistics of the first process are saved.
- ``grouped``: statistics are computed over every ``batch_norm_group`` consecutive rows of a micro-batch. The
  running statistics are updated by the mean over the groups of all processes. Results do not depend on the
  number of processes.
- ``sync``: statistics are computed over the micro-batches of all processes, with gradients. This is torch's
  ``SyncBatchNorm``, which requires CUDA; this one runs on any device. Results do not depend on the number of
  processes.

The norms of networks over series (:class:`MaskedBatchNorm`) are always synchronized.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsbackbones.layers.masked_batch_norm import MaskedBatchNorm, normalize_batch, update_statistics
from rsbackbones.layers.process_sum import world_size
from rsbackbones.train.engine.config import BatchNormMode
from rsbackbones.train.engine.errors import TrainingError

_KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def set_batch_norm(module: nn.Module, mode: BatchNormMode, group: int | None = None) -> None:
    """Set the mode of all BatchNorm layers of a module. Parameters, buffers and names do not change.

    Groups may be set again, to another number of rows.

    Args:
        module: a module with BatchNorm layers of torch or timm.
        mode: see the module docstring.
        group: rows per group. Every image of a series is a row.

    Raises:
        TrainingError: there are no BatchNorm layers, or some of an unknown class, or masked ones for groups.
    """
    if mode == "local":
        return
    found = list(_batch_norms(module))
    masked = any(isinstance(m, MaskedBatchNorm) for m in module.modules())
    if masked and mode == "grouped":
        raise TrainingError(
            f"batch_norm={mode}, and {type(module).__name__} has a BatchNorm of series, whose statistics are "
            "those of all processes: batch_norm=sync"
        )
    if not found and not masked:
        raise TrainingError(
            f"batch_norm={mode}, and {type(module).__name__} has no BatchNorm: leave batch_norm at 'local'"
        )
    plain = [(name, norm) for name, norm in found if not isinstance(norm, _SharedBatchNorm)]
    if unknown := [f"{name} ({type(norm).__name__})" for name, norm in plain if type(norm) not in _KNOWN]:
        raise TrainingError(
            f"batch_norm={mode} cannot convert {', '.join(unknown[:8])}; known are "
            f"{', '.join(kind.__name__ for kind in _KNOWN)}: use one of them, or batch_norm=local"
        )
    for _, norm in plain:
        # The class is replaced in place: references to the module, its parameters and hooks stay valid.
        norm.__class__ = type(f"Shared{type(norm).__name__}", (_SharedBatchNorm, type(norm)), {})
    for _, norm in found:
        norm.group = group if mode == "grouped" else None  # type: ignore[assignment]


def _batch_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm))


class _SharedBatchNorm(_BatchNorm):
    """BatchNorm with the statistics of groups of rows, or of all processes if ``group`` is ``None``."""

    group: int | None

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        y = self._normalize(x) if self.group is None else self._normalize_groups(x, self.group)
        if isinstance(self, BatchNormAct2d):
            y = self.act(self.drop(y))
        return y

    def _normalize(self, x: Tensor) -> Tensor:
        """Normalize [B, C, ...] over all processes."""
        try:
            normalized, mean, var = normalize_batch(x, self.eps)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        self._track(mean[None], var[None])
        if self.affine:
            sides = (-1, *(1,) * (x.ndim - 2))
            normalized = normalized * self.weight.view(sides) + self.bias.view(sides)
        return normalized.to(x.dtype)

    def _normalize_groups(self, x: Tensor, size: int) -> Tensor:
        """Normalize every ``size`` rows of [B, C, ...], by torch's own function."""
        if len(x) % size:
            raise TrainingError(
                f"batch_norm_group={size} does not divide the {len(x)} rows of a micro-batch: choose a "
                "divisor of batch_size / (processes x accumulate)"
            )
        groups = x.split(size)
        if groups[0].numel() // x.shape[1] < 2:
            raise TrainingError(f"BatchNorm needs more than 1 value per channel, got {list(groups[0].shape)}")
        wide = torch.promote_types(x.dtype, torch.float32)
        # With a momentum of 1 the running statistics become those of the group.
        mean, var = torch.zeros(2, len(groups), x.shape[1], dtype=wide, device=x.device)
        normalized = [
            F.batch_norm(rows, mean[i], var[i], self.weight, self.bias, True, 1.0, self.eps)
            for i, rows in enumerate(groups)
        ]
        self._track(mean, var)
        return torch.cat(normalized)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Update the running statistics with [G, C] ones, with the unbiased variance as in torch."""
        if not self.training or not self.track_running_stats or self.running_mean is None:
            return
        found = torch.stack((mean.mean(0), var.mean(0)))
        if self.group is not None and world_size() > 1:
            dist.all_reduce(found)
            found /= world_size()
        update_statistics(self, found[0], found[1])
