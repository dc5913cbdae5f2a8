"""Patch tokenizers: from an image to a sequence of tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.layers.patches import patchify


class LinearTokenizer(nn.Module):
    """Cut an image into square patches and project each one linearly.

    The pixels of a patch are laid out (band, row, column), so that column ``c * p * p + i * p + j`` of
    the weight belongs to band c: adapting to other bands is a matter of these groups of columns.
    """

    def __init__(self, num_bands: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(num_bands * patch_size**2, dim)

    def forward(
        self, images: Tensor, *, kept: Tensor | None = None, channels: Sequence[int] | None = None
    ) -> Tensor:
        """[B, C, H, W] to [B, N, D] with N = (H / p) * (W / p) in row-major order.

        Args:
            images: normalised images.
            kept: indices of the patches to project, [B, K], for [B, K, D] in their order; by default all.
            channels: the bands of the weight that ``images`` hold, in order; by default all.
        """
        patches = patchify(images, self.patch_size)
        if kept is not None:
            patches = torch.take_along_dim(patches, kept[..., None], dim=1)
        if channels is None:
            tokens: Tensor = self.proj(patches)
            return tokens
        weight = self.proj.weight.unflatten(1, (-1, self.patch_size**2))[:, list(channels)]
        return F.linear(patches, weight.flatten(1), self.proj.bias)
