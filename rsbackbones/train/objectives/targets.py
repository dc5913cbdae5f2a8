"""Reconstruction targets of masked autoencoders: pixels normalized per patch.

Source: He et al., Masked autoencoders are scalable vision learners, CVPR 2022, section 4.1; CROMA, section 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
