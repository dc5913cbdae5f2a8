"""LayerScale: a learned factor for every channel of a residual branch.

Source: Touvron et al., Going deeper with image transformers, ICCV 2021, section 2.
"""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """[..., D] times a factor per channel, which begins at ``initial``."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
