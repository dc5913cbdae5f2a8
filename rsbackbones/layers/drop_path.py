"""Stochastic depth: in training a block's branch is left out for some samples.

Source: Huang et al., Deep networks with stochastic depth, arXiv 1603.09382, 2016.
"""

import torch
from torch import Tensor, nn


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero the samples of a branch [B, ...] with probability ``rate``; divide the others by 1 - rate.

    The identity where ``rate`` is 0 and outside of training.
    """
    if not training or rate == 0:
        return x
    kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * kept.to(x.dtype) / (1 - rate)


def set_drop_path(module: nn.Module, rate: float) -> None:
    """Let blocks drop branches: in every list called ``blocks`` from 0 in the first to ``rate`` in the last.

    It is how a model is trained, not what its weights are of, so no file says it.

    Raises:
        ValueError: the rate is not from 0 to below 1, or blocks know no drop path.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of drop path is from 0 to below 1, got {rate}")
    for name, blocks in module.named_modules():
        if name.rpartition(".")[2] != "blocks":
            continue
        members = list(blocks.children())
        for i, block in enumerate(members):
            if not hasattr(block, "drop_path"):
                raise ValueError(f"{name}.{i}, a {type(block).__name__}, has no drop path; set its rate to 0")
            block.drop_path = rate * i / max(1, len(members) - 1)
