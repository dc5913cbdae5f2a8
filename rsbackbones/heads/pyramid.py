"""A feature pyramid from a network with a single scale, such as a ViT.

Source: Bao et al., BEiT, ICLR 2022, and after it the segmentation code of MAE and mmsegmentation. The maps of
four depths are resized to 4, 2, 1 and 1/2 of their size by transposed convolutions and a max-pooling. Between
the two convolutions of the first level, they use BatchNorm. We use a LayerNorm, as in Li et al., ViTDet, ECCV
2022, so that results do not depend on the batch.
"""

from collections.abc import Sequence

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

SCALES = (4, 2, 1, 0.5)


class Pyramid(nn.Module):
    """Resizes four maps [B, D, h, w] to 4, 2, 1 and 1/2 of their size, the last rounded up."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        if len(channels) != len(SCALES):
            raise ValueError(
                f"a pyramid from one scale requires maps of {len(SCALES)} depths, got {len(channels)}: "
                "pass that many stages in indices= (a stage may be repeated)"
            )
        first, second = channels[:2]
        self.levels = nn.ModuleList(
            [
                nn.Sequential(_doubling(first), LayerNorm2d(first), nn.GELU(), _doubling(first)),
                _doubling(second),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps [B, D, h, w] to [B, D, 4h, 4w], [B, D, 2h, 2w], [B, D, h, w] and [B, D, h/2, w/2]."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def _doubling(channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
