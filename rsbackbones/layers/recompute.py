"""Activation checkpointing: what blocks compute is not kept for the backward pass but computed again there.

Source: Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174, 2016.
"""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the modules in all lists called ``blocks``."""
    lists = [m for name, m in module.named_modules() if name.rpartition(".")[2] == "blocks"]
    return [block for blocks in lists for block in blocks.children()]


def recompute_blocks(module: nn.Module, enable: bool = True) -> None:
    """Keep only the inputs of the blocks of a module for the backward pass, or again everything.

    Gradients stay what they are; names of parameters and the state dict too.
    """
    for block in blocks_of(module):
        forward: Any = block.forward
        recomputed = isinstance(forward, partial) and forward.func is checkpoint
        if enable and not recomputed:
            block.forward = partial(checkpoint, forward, use_reentrant=False)
        elif recomputed and not enable:
            block.forward = forward.args[0]
