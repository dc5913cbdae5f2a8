"""Stochastic depth: in training a block's branch is left out for some samples.

Source: Huang et al., Deep networks with stochastic depth, arXiv 1603.09382, 2016.
"""

import torch
from torch import Tensor


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero the samples of a branch [B, ...] with probability ``rate``; divide the others by 1 - rate.

    The identity where ``rate`` is 0 and outside of training.
    """
    if not training or rate == 0:
        return x
    kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * kept.to(x.dtype) / (1 - rate)
