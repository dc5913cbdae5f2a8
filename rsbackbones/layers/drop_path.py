"""Stochastic depth: during training, skip a block's residual branch for some samples.

Source: Huang et al., Deep networks with stochastic depth, arXiv 1603.09382, 2016.
"""

import torch
from torch import Tensor


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero the samples of a branch [B, ...] with probability ``rate``; divide the others by 1 - rate.

    Return ``x`` itself if ``rate`` is 0 or outside of training.
    """
    if not training or rate == 0:
        return x
    kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * kept.to(x.dtype) / (1 - rate)
