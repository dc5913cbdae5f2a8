"""A position encoding by a convolution over the grid of tokens (PEG).

Source: Chu et al., Conditional positional encodings for vision transformers, ICLR 2023 (PEG). With masked
patches, as in CROMA's ablation (Fuller et al., NeurIPS 2023, section 4.1), masked tokens are zero.
"""

import torch
from torch import Tensor, nn


class PositionEncodingGenerator(nn.Module):
    """A depth-wise 3 x 3 convolution of the tokens, added to them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int], kept: Tensor | None = None) -> Tensor:
        """[B, N, D] on a grid (h, w) to the same; or [B, K, D] at the places ``kept``, [B, K]."""
        if kept is None:
            return x + self._convolve(x, grid)
        places = kept[..., None]  # [B, K, 1]
        whole = x.new_zeros(len(x), grid[0] * grid[1], x.shape[-1])
        whole = whole.scatter(1, places.expand_as(x), x)
        return x + torch.take_along_dim(self._convolve(whole, grid), places, dim=1)

    def _convolve(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        maps: Tensor = self.conv(x.transpose(1, 2).unflatten(2, grid))
        return maps.flatten(2).transpose(1, 2)
