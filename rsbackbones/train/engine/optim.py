"""The optimizer and its schedule, from torch and timm."""

from typing import Any, Literal, Protocol

import torch
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import CosineLRScheduler, PolyLRScheduler  # type: ignore[attr-defined]
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rsbackbones.layers.weight_decay import find_no_weight_decay
from rsbackbones.train.engine.config import OptimOptions
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.module import TrainModule


class Schedule(Protocol):
    """A learning rate schedule that is a function of the step, like those of timm."""

    def step_update(self, num_updates: int) -> None:
        """Set the learning rates of step ``num_updates``."""


class ScaledRate(Protocol):
    """Options of an optimizer that state a learning rate."""

    @property
    def base_lr(self) -> float:
        """The learning rate for a batch of 256, or for any."""

    @property
    def scaled(self) -> bool:
        """Whether it is proportional to the batch."""


def build_optimizer(module: nn.Module, options: OptimOptions, batch_size: int) -> Optimizer:
    """Build the optimizer of a module, for a global batch size."""
    lr = learning_rate(options, batch_size)
    if options.decay_all:
        trained = [p for p in module.parameters() if p.requires_grad]
        groups = [{"params": trained, "weight_decay": options.weight_decay}]
    else:
        groups = parameter_groups(module, options.weight_decay)
    if isinstance(module, TrainModule):
        groups = _scale_rates(groups, module)
    return create_optimizer(groups, options.name, lr, betas=options.betas, momentum=options.momentum)


def _scale_rates(groups: list[dict[str, Any]], module: TrainModule) -> list[dict[str, Any]]:
    """Move the parameters that have a multiple of the learning rate to groups of their own."""
    scales = {id(module.get_parameter(n)): scale for n, scale in module.learning_rate_scales().items()}
    moved = []
    for group in groups:
        for scale in dict.fromkeys(scales.get(id(p), 1.0) for p in group["params"]):
            chosen = [p for p in group["params"] if scales.get(id(p), 1.0) == scale]
            moved.append({**group, "params": chosen, **({} if scale == 1 else {"lr_scale": scale})})
    return moved


def learning_rate(options: ScaledRate, batch_size: int) -> float:
    """Return the learning rate for a global batch size (linear scaling, Goyal et al., arXiv 1706.02677)."""
    return options.base_lr * batch_size / 256 if options.scaled else options.base_lr


def create_optimizer(
    groups: list[dict[str, Any]],
    name: str,
    lr: float,
    *,
    betas: tuple[float, float],
    momentum: float | None = None,
) -> Optimizer:
    """Build an optimizer of parameter groups, which have their weight decay.

    ``momentum`` gives plain SGD; without it ``sgd`` is timm's, with Nesterov's momentum of 0.9.

    Raises:
        TrainingError: torch's Adafactor cannot train sharded parameters.
    """
    if name == "adafactor":
        if any(isinstance(p, DTensor) for group in groups for p in group["params"]):
            raise TrainingError(
                "optim.name=adafactor cannot train sharded parameters (torch's does not support them): pass "
                "parallel=ddp, or another optimizer"
            )
        # timm's has a first moment and an absolute learning rate if it is given betas.
        return torch.optim.Adafactor(groups, lr)
    if name == "sgd" and momentum is not None:
        return torch.optim.SGD(groups, lr, momentum=momentum)
    extra: dict[str, Any] = {"betas": betas}
    if name in ("adam", "adamw"):
        extra["fused"] = True  # one pass over the parameters instead of ten
    return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=0.0, **extra)


def parameter_groups(
    module: nn.Module, weight_decay: float, *, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters with their weight decay, and their scale of the learning rate.

    Biases, norms and what the module states (:mod:`rsbackbones.layers.weight_decay`) have no weight decay.
    Layer decay uses ``module.group_matcher``, as for timm's models.
    """
    exempt = sorted(find_no_weight_decay(module))
    if layer_decay < 1:
        layers: list[dict[str, Any]] = param_groups_layer_decay(
            module, weight_decay, exempt, layer_decay=layer_decay
        )
        return layers
    groups: list[dict[str, Any]] = param_groups_weight_decay(
        module, weight_decay, no_weight_decay_list=exempt
    )
    return groups


def build_schedule(optimizer: Optimizer, options: OptimOptions, steps: int) -> Schedule:
    """Build the schedule of pretraining over all steps: linear warm-up, then cosine to zero or constant."""
    return warmup_schedule(optimizer, options.schedule, steps=steps, warmup=round(options.warmup * steps))


def warmup_schedule(
    optimizer: Optimizer,
    kind: Literal["cosine", "poly", "constant"],
    *,
    steps: int,
    warmup: int,
    min_lr: float = 0.0,
    power: float = 1.0,
) -> Schedule:
    """Build a schedule over ``steps``: linear warm-up for ``warmup`` steps, then one of three kinds.

    It is evaluated at step + 1, so that the first and the last step have rates above zero.
    """
    if kind == "constant":
        return _Constant(optimizer, warmup)
    common: dict[str, Any] = {
        "t_initial": steps - warmup + 1, "warmup_t": warmup, "warmup_lr_init": 0.0, "warmup_prefix": True,
        "t_in_epochs": False, "lr_min": min_lr,
    }  # fmt: skip
    if kind == "poly":
        poly: Schedule = PolyLRScheduler(optimizer, power=power, **common)
        return poly
    cosine: Schedule = CosineLRScheduler(optimizer, **common)
    return cosine


class _Constant:
    """A constant learning rate after a linear warm-up."""

    def __init__(self, optimizer: Optimizer, warmup: int) -> None:
        self.optimizer, self.warmup = optimizer, warmup
        self.rates = [group["lr"] * group.get("lr_scale", 1.0) for group in optimizer.param_groups]

    def step_update(self, num_updates: int) -> None:
        """Set the learning rates of a step."""
        share = min(1.0, num_updates / self.warmup) if self.warmup else 1.0
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = share * rate


def start_state(module: nn.Module, optimizer: Optimizer) -> None:
    """Create the optimizer state of every parameter before the first step.

    A parameter without a gradient so far (the radar encoder, if the first batches are optical) would have no
    state in a checkpoint, and a checkpoint with missing keys cannot be loaded.
    """
    get_optimizer_state_dict(module, optimizer)  # takes a step with zero gradients and a zero learning rate
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
