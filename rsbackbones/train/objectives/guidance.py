"""Guidance of a student by a frozen network of the same architecture, the oracle (FoMu-SSL, section 2.2).

Seo, Jung and Kim, "FoMu-SSL", ICML 2024 workshop. The distances are of pooled features [B, D] before any
head: the paper writes q = z_s, but an oracle has no projection head.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = ("red", "green", "blue")
Channel = Literal["red", "green", "blue", "sum"]


def cosine_distance(oracle: Tensor, student: Tensor) -> Tensor:
    """Return the mean over the batch of 1 - cos of features [B, D]; a vector of zeros has distance 1."""
    return (1 - F.cosine_similarity(oracle, student, dim=1, eps=1e-8)).mean()


def mse_distance(oracle: Tensor, student: Tensor) -> Tensor:
    """Return the mean squared difference of features [B, D], over batch and channels."""
    return F.mse_loss(student, oracle)


class Miro(nn.Module):
    """MIRO's distance: the negative log-likelihood of the oracle's features under a normal distribution.

    Cha et al., "Domain Generalization by Mutual-Information Regularization with Pre-trained Models", ECCV
    2022.
    Its mean is the student's feature, its variance, softplus(b) + 1e-5, a learned one of every channel, at
    first 0.1. The FoMu paper does not say which features; here the pooled ones.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.full((dim,), math.log(math.expm1(0.1 - 1e-5))))

    def forward(self, oracle: Tensor, student: Tensor) -> Tensor:
        """Return the mean over batch and channels for features [B, D]."""
        variance = (F.softplus(self.b) + 1e-5).expand_as(student)
        return F.gaussian_nll_loss(student, oracle, variance)


def one_channel(weight: Tensor, channel: Channel) -> Tensor:
    """Return the part of a stem [O, 3, k, k] that sees one color, [O, 1, k, k], unscaled; ``sum``: of all.

    The paper gives radar images to "a subset of filters of the first layer" (section 2.2.2).

    Raises:
        ValueError: an unknown channel, or a stem that has not three channels.
    """
    if channel not in (*CHANNELS, "sum"):
        raise ValueError(f"channel must be one of {', '.join(CHANNELS)} or sum, got {channel!r}")
    if weight.ndim != 4 or weight.shape[1] != len(CHANNELS):
        raise ValueError(f"expected the kernel of three colors, [O, 3, k, k], got {list(weight.shape)}")
    if channel == "sum":
        return weight.sum(dim=1, keepdim=True)
    place = CHANNELS.index(channel)
    return weight[:, place : place + 1]
