"""A U-Net decoder over the maps of every date: for series, on backbones that encode single images.

Source: Shenoy et al., S4, Remote Sensing 2024, section 6.5: every image of a series goes through the encoder,
a ConvLSTM reduces the maps of each level to one, and the upsampling part of a 2-D U-Net follows. The paper
leaves widths and kernels open. Ours: a ConvLSTM of kernel 3 for each level, whose state has as many channels
as the level, at most ``width``; two convolutions of ``width`` channels for each level of the decoder. Other
temporal encoders (section 5.3) are options.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.heads.head import SeriesHead
from rsbackbones.heads.pyramid import SCALES, Pyramid
from rsbackbones.layers.temporal_pooling import ConvLSTM, LightTemporalAttention, ValidMean

Temporal = Literal["convlstm", "ltae", "mean"]
POOLINGS: dict[str, Callable[[int, int], nn.Module]] = {
    "convlstm": ConvLSTM, "ltae": LightTemporalAttention, "mean": ValidMean
}  # fmt: skip


class TemporalHead(SeriesHead):
    """Reduces the maps of each level over time, and merges the levels into logits at the finest scale.

    Args:
        channels: the channels of every map, from the first stage to the last.
        reductions: the strides of the maps: four equal ones (a ViT), or one or more that increase.
        num_classes: K.
        temporal: how dates are reduced.
        width: the channels of the decoder.

    Raises:
        ValueError: the strides are neither equal nor increasing, or equal but not four.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[float],
        num_classes: int,
        *,
        temporal: Temporal = "convlstm",
        width: int = 64,
    ) -> None:
        super().__init__()
        steps = list(pairwise(reductions))
        flat = bool(steps) and all(a == b for a, b in steps)
        if not flat and not all(a < b for a, b in steps):
            raise ValueError(
                f"a U-Net decoder requires equal or increasing strides, got {list(reductions)}; pass "
                "indices= in increasing order, with one stage per stride"
            )
        widths = [min(width, count) for count in channels]
        self.poolings = nn.ModuleList(
            POOLINGS[temporal](count, to) for count, to in zip(channels, widths, strict=True)
        )
        self.pyramid = Pyramid(widths) if flat else None
        self.reduction = float(reductions[0]) / (SCALES[0] if flat else 1)
        coarsest = len(widths) - 1
        below = [width] * (coarsest - 1) + widths[-1:]  # what comes up to a level
        self.blocks = nn.ModuleList(_block(widths[i] + below[i], width) for i in range(coarsest))
        self.classify = nn.Conv2d(width if self.blocks else widths[0], num_classes, kernel_size=1)

    def forward(
        self, maps: Sequence[Tensor], valid: Tensor | None = None, dates: Tensor | None = None
    ) -> Tensor:
        """Maps [B, T, D_i, h_i, w_i] to logits [B, K, h, w]; see :meth:`SeriesHead.forward`."""
        first = maps[0]
        there = first.new_ones(first.shape[:2], dtype=torch.bool) if valid is None else valid
        levels = [pool(x, there, dates) for pool, x in zip(self.poolings, maps, strict=True)]
        if self.pyramid is not None:
            levels = self.pyramid(levels)
        *finer, x = levels
        for block, level in zip(self.blocks[::-1], finer[::-1], strict=True):
            up = F.interpolate(x, level.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat((level, up), dim=1))
        logits: Tensor = self.classify(x)
        return logits


def _block(inputs: int, width: int) -> nn.Module:
    """Return two convolutions of kernel 3, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)
