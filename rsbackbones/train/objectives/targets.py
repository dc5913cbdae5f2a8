"""Pixels as a masked autoencoder's targets: every patch normalized by itself.

Source: He et al., Masked autoencoders are scalable vision learners, CVPR 2022, section 4.1; CROMA, section 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-6


@dataclass(frozen=True)
class PatchScale:
    """Mean and standard deviation of the pixels of every patch, over all bands, [B, N, 1] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, patches: Tensor) -> "PatchScale":
        """Measure [B, N, C * p * p]; the variance is the unbiased one, plus 1e-6."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return cls(mean, (variance + EPSILON).sqrt())

    def normalize(self, patches: Tensor) -> Tensor:
        """Bring [B, N, C * p * p] to mean 0 and standard deviation 1."""
        return (patches - self.mean) / self.std

    def undo(self, patches: Tensor) -> Tensor:
        """Bring normalized [B, N, C * p * p] back to pixels."""
        return patches * self.std + self.mean
