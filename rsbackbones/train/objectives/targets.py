"""Reconstruction targets of masked autoencoders: pixels normalized per patch.

Source: He et al., Masked autoencoders are scalable vision learners, CVPR 2022, section 4.1; CROMA, section 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rsbackbones.layers.patches import patchify
from rsbackbones.train.objectives.precision import full_precision

EPSILON = 1e-6


@dataclass(frozen=True)
class PatchNormalizer:
    """Mean and standard deviation of the pixels of every patch, over all bands, [B, N, 1] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, patches: Tensor) -> "PatchNormalizer":
        """Return the statistics of patches [B, N, C * p * p]: unbiased variance, plus 1e-6."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return cls(mean, (variance + EPSILON).sqrt())

    def normalize(self, patches: Tensor) -> Tensor:
        """Normalize patches [B, N, C * p * p] to mean 0 and standard deviation 1."""
        return (patches - self.mean) / self.std

    def undo(self, patches: Tensor) -> Tensor:
        """Convert normalized patches [B, N, C * p * p] back to pixels."""
        return patches * self.std + self.mean


def patch_errors(predicted: Tensor, image: Tensor, patch_size: int, *, normalized: bool) -> Tensor:
    """Return the mean square error of every patch, [B, N].

    Args:
        predicted: pixels of the patches, [B, N, C * p * p], laid out (band, row, column).
        image: the target, [B, C, H, W].
        patch_size: p, the pixels of the target along each side of a patch.
        normalized: normalize every patch of the target, see :class:`PatchNormalizer`.

    Raises:
        ValueError: the image has other patches than the prediction.
    """
    batch, bands, height, width = image.shape
    expected = (batch, (height // patch_size) * (width // patch_size), bands * patch_size**2)
    if tuple(predicted.shape) != expected or height % patch_size or width % patch_size:
        raise ValueError(
            f"an image {list(image.shape)} in patches of {patch_size} pixels needs a prediction "
            f"{list(expected)}, got {list(predicted.shape)}: patch_size is that of the target"
        )
    target = patchify(full_precision(image), patch_size)
    if normalized:
        target = PatchNormalizer.of(target).normalize(target)
    return (full_precision(predicted) - target).square().mean(dim=-1)
