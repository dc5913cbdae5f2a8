"""Activation checkpointing: what a unit computes is not kept for the backward pass but computed again there.

Source: Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174, 2016.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(units: Iterable[nn.Module]) -> None:
    """Keep only the inputs of every unit for the backward pass.

    Gradients, running statistics, names of parameters and the state dict stay what they are.
    """
    for unit in units:
        recomputed: Any = partial(checkpoint, unit.forward, use_reentrant=False)
        if any(isinstance(module, _BatchNorm) for module in unit.modules()):
            recomputed = partial(recomputed, context_fn=partial(_contexts, unit))
        unit.forward = recomputed


def _contexts(unit: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _without_tracking(unit)


@contextmanager
def _without_tracking(unit: nn.Module) -> Iterator[None]:
    """While a unit is computed again: BatchNorm has taken this batch into its running statistics already."""
    before = [
        (module, module.momentum, module.num_batches_tracked.clone())
        for module in unit.modules()
        if isinstance(module, _BatchNorm) and module.num_batches_tracked is not None
    ]
    for module, *_ in before:
        module.momentum = 0.0  # the share of this batch
    try:
        yield
    finally:
        for module, momentum, count in before:
            module.momentum = momentum
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.copy_(count)
