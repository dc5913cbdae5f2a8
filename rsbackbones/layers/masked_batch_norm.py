"""BatchNorm over the frames of series that are there, with running statistics of each sensor.

Shared layers see optical and radar maps, whose statistics differ: one running average of both would normalize
neither in ``eval()`` mode. Statistics of a batch are those of all processes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from rsbackbones.layers.process_sum import sum_over_processes


class MaskedBatchNorm(nn.Module):
    """BatchNorm of maps [B, C, T, h, w] that ignores missing frames.

    Parameters ``weight`` and ``bias`` are shared by the sensors; ``statistics.SENSOR`` are running statistics
    under torch's names. Training uses the statistics of the batch, over all processes, and updates the
    running ones with the unbiased variance, as torch does.
    """

    def __init__(self, channels: int, sensors: Sequence[str], eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.statistics = nn.ModuleDict({s: _NormBase(channels, eps, affine=False) for s in sensors})

    def forward(self, x: Tensor, there: Tensor, sensor: str) -> Tensor:
        """Normalize [B, C, T, h, w].

        Args:
            x: the values of missing frames are arbitrary, but finite.
            there: [B, T] booleans.
            sensor: whose running statistics are used or updated.

        Raises:
            ValueError: in training, if there is no more than one value per channel.
        """
        running = self.statistics[sensor]
        assert isinstance(running, _NormBase)
        if not self.training:
            return F.batch_norm(
                x, running.running_mean, running.running_var, self.weight, self.bias, eps=self.eps
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        keep = there[:, None, :, None, None]
        count = sum_over_processes(there.sum() * x.shape[-2] * x.shape[-1])
        if count < 2:
            raise ValueError(
                f"BatchNorm needs more than 1 value per channel, got {int(count)} in {list(x.shape)}: train "
                "on larger images or batches"
            )
        mean = sum_over_processes(wide.masked_fill(~keep, 0).sum(dim=(0, 2, 3, 4))) / count
        centered = (wide - mean.view(-1, 1, 1, 1)).masked_fill(~keep, 0)
        var = sum_over_processes(centered.square().sum(dim=(0, 2, 3, 4))) / count
        _track(running, mean.detach(), var.detach() * (count / (count - 1)))
        scale = self.weight * (var + self.eps).rsqrt()
        normalized = centered * scale.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)
        return normalized.to(x.dtype)


@torch.no_grad()
def _track(running: _NormBase, mean: Tensor, var: Tensor) -> None:
    assert running.running_mean is not None
    assert running.running_var is not None
    assert running.num_batches_tracked is not None
    assert running.momentum is not None
    running.num_batches_tracked.add_(1)
    running.running_mean.lerp_(mean.to(running.running_mean.dtype), running.momentum)
    running.running_var.lerp_(var.to(running.running_var.dtype), running.momentum)
