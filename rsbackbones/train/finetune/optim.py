"""The optimizer and the schedule of fine-tuning, from torch and timm."""

from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # type: ignore[attr-defined]
from timm.scheduler import CosineLRScheduler, PolyLRScheduler  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from rsbackbones.train.engine.optim import no_weight_decay_names
from rsbackbones.train.engine.train_step import Schedule
from rsbackbones.train.finetune.recipe import FinetuneOptim


def learning_rate(options: FinetuneOptim, batch_size: int) -> float:
    """Return the learning rate for a global batch size (linear scaling, Goyal et al., arXiv 1706.02677)."""
    return options.base_lr * batch_size / 256 if options.scaled else options.base_lr


def build_optimizer(module: nn.Module, options: FinetuneOptim, batch_size: int) -> Optimizer:
    """Build the optimizer of the trainable parameters of a module.

    Layer decay uses ``module.group_matcher``, as for timm's models.
    """
    decay, exempt = options.weight_decay, no_weight_decay_names(module)
    if options.layer_decay < 1:
        groups = param_groups_layer_decay(module, decay, exempt, layer_decay=options.layer_decay)
    else:
        groups = param_groups_weight_decay(module, decay, no_weight_decay_list=exempt)
    lr = learning_rate(options, batch_size)
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=options.momentum)
    if options.name == "adafactor":
        return torch.optim.Adafactor(groups, lr)
    return torch.optim.AdamW(groups, lr, betas=options.betas, fused=True)


class Constant:
    """A constant learning rate after a linear warm-up."""

    def __init__(self, optimizer: Optimizer, warmup: int) -> None:
        self.optimizer, self.warmup = optimizer, warmup
        self.rates = [group["lr"] * group.get("lr_scale", 1.0) for group in optimizer.param_groups]

    def step_update(self, num_updates: int) -> None:
        """Set the learning rates of a step."""
        share = min(1.0, num_updates / self.warmup) if self.warmup else 1.0
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = share * rate


def build_schedule(
    optimizer: Optimizer, options: FinetuneOptim, *, steps: int, steps_per_epoch: int
) -> Schedule:
    """Build the schedule over all steps. It is evaluated at step + 1, as in pretraining.

    Raises:
        ValueError: the warm-up is not shorter than the run.
    """
    warmup = options.warmup_steps + round(options.warmup_epochs * steps_per_epoch)
    if warmup >= steps:
        raise ValueError(
            f"the warm-up of {warmup} steps is not shorter than the run of {steps}; lower "
            "optim.warmup_epochs or optim.warmup_steps"
        )
    if options.schedule == "constant":
        return Constant(optimizer, warmup)
    common: dict[str, Any] = {
        "t_initial": steps - warmup + 1, "warmup_t": warmup, "warmup_lr_init": 0.0, "warmup_prefix": True,
        "t_in_epochs": False, "lr_min": options.min_lr,
    }  # fmt: skip
    if options.schedule == "poly":
        poly: Schedule = PolyLRScheduler(optimizer, power=options.power, **common)
        return poly
    cosine: Schedule = CosineLRScheduler(optimizer, **common)
    return cosine
