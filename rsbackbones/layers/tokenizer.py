"""Patch tokenizers: from an image to a sequence of tokens.

All of them apply one *kernel* [D, C, p, p] to every patch. They differ in the shape of the stored weight, and
``to_kernel`` and ``from_kernel`` convert between the two. Adapting kernels to other bands or patch sizes
(:mod:`rsbackbones.zoo.adapt`) therefore does not depend on the tokenizer.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.layers.patches import PixelOrder, patchify


class LinearTokenizer(nn.Module):
    """Cut an image into square patches and project each one linearly.

    ``pixel_order`` is the order of the pixels in a patch, and of the columns of the weight: (band, row,
    column), or (row, column, band) as in MAE's loss.
    """

    def __init__(
        self, num_bands: int, dim: int, patch_size: int, pixel_order: PixelOrder = "band_first"
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pixel_order: PixelOrder = pixel_order
        self.proj = nn.Linear(num_bands * patch_size**2, dim)

    def to_kernel(self, weight: Tensor) -> Tensor:
        """Convert a weight [D, C * p * p], for any number of bands, to [D, C, p, p]."""
        p, first = self.patch_size, self.pixel_order == "band_first"
        pixels: Tensor = weight.unflatten(1, (-1, p, p) if first else (p, p, -1))
        return pixels if first else pixels.movedim(-1, 1)

    def from_kernel(self, kernel: Tensor) -> Tensor:
        """[D, C, p, p] to [D, C * p * p], the inverse of :meth:`to_kernel`."""
        return (kernel if self.pixel_order == "band_first" else kernel.movedim(1, -1)).flatten(1)

    def forward(
        self, images: Tensor, *, kept: Tensor | None = None, channels: Sequence[int] | None = None
    ) -> Tensor:
        """[B, C, H, W] to [B, N, D] with N = (H / p) * (W / p) in row-major order.

        Args:
            images: normalized images.
            kept: indices of the patches to project, [B, K], for [B, K, D] in their order; by default all.
            channels: indices of the bands in ``images``, in order; by default all.
        """
        patches = patchify(images, self.patch_size, self.pixel_order)
        if kept is not None:
            patches = torch.take_along_dim(patches, kept[..., None], dim=1)
        if channels is None:
            tokens: Tensor = self.proj(patches)
            return tokens
        kernel = self.to_kernel(self.proj.weight)[:, list(channels)]
        return F.linear(patches, self.from_kernel(kernel), self.proj.bias)


class ConvTokenizer(nn.Module):
    """A convolution with stride equal to its kernel size: the same patches, stored as in timm's ViTs."""

    def __init__(self, num_bands: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(num_bands, dim, patch_size, stride=patch_size)

    def to_kernel(self, weight: Tensor) -> Tensor:
        """[D, C, p, p], as it is."""
        return weight

    def from_kernel(self, kernel: Tensor) -> Tensor:
        """[D, C, p, p], as it is."""
        return kernel

    def forward(
        self, images: Tensor, *, kept: Tensor | None = None, channels: Sequence[int] | None = None
    ) -> Tensor:
        """[B, C, H, W] to [B, N, D]; see :meth:`LinearTokenizer.forward`."""
        weight = self.proj.weight if channels is None else self.proj.weight[:, list(channels)]
        maps = F.conv2d(images, weight, self.proj.bias, stride=self.patch_size)  # [B, D, h, w]
        tokens = maps.flatten(2).transpose(1, 2)
        return tokens if kept is None else torch.take_along_dim(tokens, kept[..., None], dim=1)
