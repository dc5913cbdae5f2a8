"""Activation checkpointing: discard intermediate results, and recompute them in the backward pass.

Source: Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174, 2016.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(modules: Sequence[nn.Module], enable: bool = True) -> None:
    """Store only the inputs of these modules for the backward pass. ``enable=False`` stores everything again.

    Gradients, parameter names and the state dict do not change. Running statistics of BatchNorm are updated
    once per batch.

    Raises:
        ValueError: there are no modules.
    """
    if not modules:
        raise ValueError(
            "activation checkpointing needs modules to recompute, and this model lists none in units()"
        )
    for module in modules:
        forward: Any = module.forward
        wrapped = isinstance(forward, partial) and forward.func is checkpoint
        if enable and not wrapped:
            norms = any(isinstance(m, _NormBase) for m in module.modules())
            options = {"context_fn": partial(_contexts, module)} if norms else {}
            module.forward = partial(checkpoint, forward, use_reentrant=False, **options)
        elif wrapped and not enable:
            module.forward = forward.args[0]


def _contexts(module: nn.Module) -> tuple[Any, Any]:
    """Return the contexts of the forward pass and of the recomputation."""
    # Look up the norms now: the ones from when the module was wrapped may have been replaced.
    return nullcontext(), _freeze_statistics([m for m in module.modules() if isinstance(m, _NormBase)])


@contextmanager
def _freeze_statistics(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Let norms normalize as in training, without updating their running statistics."""
    before = [(norm.momentum, _copy(norm.num_batches_tracked)) for norm in norms]
    try:
        for norm in norms:
            # Not track_running_stats: without it norms save other tensors, and torch then raises an error.
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def _copy(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()
