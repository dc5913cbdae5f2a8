"""The optimizer and the schedule of fine-tuning, with the options of its recipes."""

import torch
from torch import nn
from torch.optim import Optimizer

from rsbackbones.train.engine.optim import Schedule, parameter_groups, warmup_schedule
from rsbackbones.train.finetune.recipe import FinetuneOptim


def learning_rate(options: FinetuneOptim, batch_size: int) -> float:
    """Return the learning rate for a global batch size (linear scaling, Goyal et al., arXiv 1706.02677)."""
    return options.base_lr * batch_size / 256 if options.scaled else options.base_lr


def build_optimizer(module: nn.Module, options: FinetuneOptim, batch_size: int) -> Optimizer:
    """Build the optimizer of the trainable parameters of a module."""
    groups = parameter_groups(module, options.weight_decay, layer_decay=options.layer_decay)
    lr = learning_rate(options, batch_size)
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=options.momentum)
    if options.name == "adafactor":
        return torch.optim.Adafactor(groups, lr)
    return torch.optim.AdamW(groups, lr, betas=options.betas, fused=True)


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
