"""A linear classifier of every cell of a map: the simplest dense head, and the probe of dense features.

Source: Fuller, Millard and Green, CROMA, NeurIPS 2023, section 4.1 (segmentation by a linear probe of frozen
patch encodings).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from rsbackbones.heads.head import DenseHead


class LinearHead(DenseHead):
    """A 1 x 1 convolution of one map with the stride ``reduction``."""

    def __init__(self, channels: int, reduction: float, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.reduction = reduction

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map [B, D, h, w] to logits [B, K, h, w]."""
        (features,) = maps
        logits: Tensor = self.classify(features)
        return logits
