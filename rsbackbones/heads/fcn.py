"""The auxiliary head of a dense recipe: two convolutions on one map, for a second loss in training.

Source: Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, section 3.3 (deep supervision of a stage before
the last); the head is MMSegmentation's ``FCNHead`` of one convolution. It is trained beside a
:class:`~rsbackbones.heads.dense.DenseModel`, and is no part of it.
"""

from torch import Tensor, nn


class FCNHead(nn.Module):
    """Converts a map [B, D, h, w] to logits [B, K, h, w].

    Args:
        channels: D.
        num_classes: K.
        width: channels between the convolutions.
        dropout: of whole channels, before the last one.
    """

    def __init__(self, channels: int, num_classes: int, *, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, num_classes, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convert a map to logits."""
        logits: Tensor = self.layers(x)
        return logits
