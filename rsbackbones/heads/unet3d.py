"""The last convolution of a 3-D U-Net, whose decoder belongs to the backbone.

Source: Shenoy et al., S4, Remote Sensing 2024, sections 5.3 and 6.3, and the 3-D U-Net of the authors of
PASTIS: a convolution of kernel 3 to the classes, then the mean over time. Here the mean is over the dates
that are there, and missing dates are zeros before the convolution.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rsbackbones.heads.head import SeriesHead


class UNet3dHead(SeriesHead):
    """A 3 x 3 x 3 convolution of one map of every date, and the mean of its logits over time."""

    def __init__(self, channels: int, reduction: float, num_classes: int) -> None:
        super().__init__()
        self.final = nn.Conv3d(channels, num_classes, kernel_size=3, padding=1)
        self.reduction = reduction

    def forward(
        self, maps: Sequence[Tensor], valid: Tensor | None = None, dates: Tensor | None = None
    ) -> Tensor:
        """One map [B, t, D, h, w] to logits [B, K, h, w]; see :meth:`SeriesHead.forward`."""
        (x,) = maps
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
        keep = there[:, None, :, None, None]
        logits = self.final(x.transpose(1, 2).masked_fill(~keep, 0)).masked_fill(~keep, 0)
        count = there.sum(dim=1).clamp(min=1).to(logits.dtype)
        mean: Tensor = logits.sum(dim=2) / count[:, None, None, None]
        return mean
