"""The optimizer and the schedule of fine-tuning, with the options of its recipes."""

from torch import nn
from torch.optim import Optimizer

from rsbackbones.train.engine.optim import (
    Schedule,
    create_optimizer,
    learning_rate,
    parameter_groups,
    warmup_schedule,
)
from rsbackbones.train.finetune.recipe import FinetuneOptim


def build_optimizer(module: nn.Module, options: FinetuneOptim, batch_size: int) -> Optimizer:
    """Build the optimizer of the trainable parameters of a module."""
    groups = parameter_groups(module, options.weight_decay, layer_decay=options.layer_decay)
    lr = learning_rate(options, batch_size)
    return create_optimizer(groups, options.name, lr, betas=options.betas, momentum=options.momentum)


def build_schedule(
    optimizer: Optimizer, options: FinetuneOptim, *, steps: int, steps_per_epoch: int
) -> Schedule:
    """Build the schedule over all steps.

    Raises:
        ValueError: the warm-up is not shorter than the run.
    """
    warmup = options.warmup_steps + round(options.warmup_epochs * steps_per_epoch)
    if warmup >= steps:
        raise ValueError(
            f"the warm-up of {warmup} steps is not shorter than the run of {steps}; lower "
            "optim.warmup_epochs or optim.warmup_steps"
        )
    return warmup_schedule(
        optimizer, options.schedule, steps=steps, warmup=warmup, min_lr=options.min_lr, power=options.power
    )
