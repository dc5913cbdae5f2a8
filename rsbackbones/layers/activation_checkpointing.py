"""Activation checkpointing: what modules compute is not kept for the backward pass but computed again there.

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
    """Keep only the inputs of these modules for the backward pass, or again everything.

    Gradients stay what they are; names of parameters and the state dict too, and the running statistics of
    BatchNorm, which see every batch once.

    Raises:
        ValueError: there are no modules.
    """
    if not modules:
        raise ValueError("this model names no modules to compute again: activation checkpointing needs some")
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
    """What the first computation and the second one run in."""
    # Looked up now: what was there when the module was wrapped may have been replaced.
    return nullcontext(), _statistics_kept([m for m in module.modules() if isinstance(m, _NormBase)])


@contextmanager
def _statistics_kept(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Let norms compute as in training and leave its running statistics alone."""
    before = [(norm.momentum, _copy(norm.num_batches_tracked)) for norm in norms]
    try:
        for norm in norms:
            # Not track_running_stats: without it other tensors are kept, which torch takes for an error.
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def _copy(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()
