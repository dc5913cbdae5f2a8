"""Patch tokenizers: from an image to a sequence of tokens."""

from einops import rearrange
from torch import Tensor, nn


class LinearTokenizer(nn.Module):
    """Cut an image into square patches and project each one linearly.

    The pixels of a patch are laid out (band, row, column), so that column ``c * p * p + i * p + j`` of
    the weight belongs to band c: adapting to other bands is a matter of these groups of columns.
    """

    def __init__(self, num_bands: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(num_bands * patch_size**2, dim)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, D] with N = (H / p) * (W / p) in row-major order."""
        p = self.patch_size
        patches = rearrange(images, "b c (h i) (w j) -> b (h w) (c i j)", i=p, j=p)
        tokens: Tensor = self.proj(patches)
        return tokens
