"""BatchNorm with the statistics of all processes, and of series over the frames that are there.

Torch's ``SyncBatchNorm`` requires CUDA and knows no masks; this one runs on any device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from rsbackbones.layers.process_sum import sum_over_processes, world_size


class MaskedBatchNorm(nn.Module):
    """BatchNorm of maps [B, C, T, h, w] without missing frames and padding, with statistics of each sensor.

    Layers that sensors share see optical and radar maps, whose statistics differ: one running average of both
    would normalize neither in ``eval()`` mode. Parameters ``weight`` and ``bias`` are shared by the sensors;
    ``statistics.SENSOR`` are running statistics under torch's names.
    """

    def __init__(self, channels: int, sensors: Sequence[str], eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.statistics = nn.ModuleDict({s: _NormBase(channels, eps, affine=False) for s in sensors})

    def forward(self, x: Tensor, there: Tensor, sensor: str, size: tuple[int, int] | None = None) -> Tensor:
        """Normalize [B, C, T, h, w]: all values, by statistics of those that count.

        Args:
            x: the values of missing frames are arbitrary, but finite.
            there: [B, T] booleans.
            sensor: whose running statistics are used or updated.
            size: rows and columns that count; those behind them are padding. ``None``: all.

        Raises:
            ValueError: in training, if there is no more than one value per channel.
        """
        running = self.statistics[sensor]
        assert isinstance(running, _NormBase)
        if not self.training:
            return F.batch_norm(
                x, running.running_mean, running.running_var, self.weight, self.bias, eps=self.eps
            )
        keep = there[:, None, :, None, None]
        if size is not None and size != tuple(x.shape[-2:]):
            rows, columns = (
                torch.arange(n, device=x.device) < held for n, held in zip(x.shape[-2:], size, strict=True)
            )
            keep = keep & rows[:, None] & columns
        y, mean, var = normalize_batch(x, self.eps, keep)
        update_statistics(running, mean, var)
        sides = (-1, 1, 1, 1)
        return (y * self.weight.view(sides) + self.bias.view(sides)).to(x.dtype)


def normalize_batch(x: Tensor, eps: float, keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize [B, C, ...] by the statistics of the batches of all processes, in float32 or wider.

    Args:
        x: the values.
        eps: added to the variance.
        keep: booleans that broadcast with ``x``, equal for all channels: False for values that are no part
            of the statistics. They are normalized as the others.

    Returns:
        The normalized values; and the mean and the unbiased variance [C], without gradients.

    Raises:
        ValueError: there is no more than one value per channel.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    channels, others = (-1, *(1,) * (x.ndim - 2)), (0, *range(2, x.ndim))
    count: Tensor | int = x[:, 0].numel() * world_size()
    if keep is not None:
        found = sum_over_processes(keep[:, 0].sum() * (x[:, 0].numel() // keep[:, 0].numel()))
        count = found.to(wide.dtype)

    def mean_of(values: Tensor) -> Tensor:
        counted = values if keep is None else values.masked_fill(~keep, 0)
        return sum_over_processes(counted.sum(dim=others)) / count

    if not torch.compiler.is_compiling() and count < 2:
        raise ValueError(
            f"BatchNorm needs more than 1 value per channel, got {int(count)} in {list(x.shape)}: train on "
            "larger images or batches"
        )
    mean = mean_of(wide)
    centered = wide - mean.view(channels)
    var = mean_of(centered.square())
    normalized = centered * (var + eps).rsqrt().view(channels)
    return normalized, mean.detach(), var.detach() * (count / (count - 1))


@torch.no_grad()
def update_statistics(norm: _NormBase, mean: Tensor, var: Tensor) -> None:
    """Update running statistics with a mean and an unbiased variance [C], as torch does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), share)
