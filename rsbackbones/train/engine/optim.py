"""The optimizer and its schedule, from torch and timm."""

from typing import Any

from timm.optim import create_optimizer_v2, param_groups_weight_decay  # type: ignore[attr-defined]
from timm.scheduler import CosineLRScheduler  # type: ignore[attr-defined]
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import Optimizer

from rsbackbones.layers.weight_decay import find_no_weight_decay
from rsbackbones.train.engine.config import OptimOptions


def build_optimizer(module: nn.Module, options: OptimOptions, batch_size: int) -> Optimizer:
    """Build the optimizer of a module, with learning rate ``base_lr`` x ``batch_size`` / 256."""
    groups = param_groups_weight_decay(
        module, options.weight_decay, no_weight_decay_list=no_weight_decay_names(module)
    )
    lr = options.base_lr * batch_size / 256
    extra: dict[str, Any] = {"betas": options.betas}
    if options.name in ("adam", "adamw"):
        extra["fused"] = True  # one pass over the parameters instead of ten
    return create_optimizer_v2(groups, opt=options.name, lr=lr, weight_decay=0.0, **extra)


def no_weight_decay_names(module: nn.Module) -> list[str]:
    """Return the parameters of two or more dimensions that are not decayed, as the module states them."""
    return sorted(find_no_weight_decay(module))


def build_schedule(optimizer: Optimizer, options: OptimOptions, steps: int) -> CosineLRScheduler:
    """Build the schedule over all steps: linear warm-up, then cosine to zero, as a function of the step.

    It is evaluated at step + 1, so that the first and the last step have rates above zero.
    """
    warmup = round(options.warmup * steps)
    return CosineLRScheduler(
        optimizer, t_initial=steps - warmup + 1, warmup_t=warmup, warmup_lr_init=0.0,
        warmup_prefix=True, t_in_epochs=False, lr_min=0.0,
    )  # fmt: skip


def start_state(module: nn.Module, optimizer: Optimizer) -> None:
    """Create the optimizer state of every parameter before the first step.

    A parameter without a gradient so far (the radar encoder, if the first batches are optical) would have no
    state in a checkpoint, and a checkpoint with missing keys cannot be loaded.
    """
    get_optimizer_state_dict(module, optimizer)  # takes a step with zero gradients and a zero learning rate
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
