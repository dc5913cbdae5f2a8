"""What is put around an objective from outside: activation checkpointing, then compile, then DDP or FSDP2.

The modules that these treat one by one are those in lists called ``blocks``. Nothing here changes a
parameter's name or the state dict.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rsbackbones.layers.activation_checkpointing import checkpoint_activations
from rsbackbones.train.options import RunOptions


def parallelize(objective: nn.Module, recipe: RunOptions, device: torch.device, *, unused: bool) -> nn.Module:
    """Return what the loop calls. ``unused``: some batches leave some parameters without a gradient."""
    blocks = objective.units()  # type: ignore[operator]
    if recipe.activation_checkpointing:
        checkpoint_activations(blocks)
    if recipe.compile:
        for block in blocks:
            # Batches of several sources differ in size.
            block.compile(dynamic=None)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return objective
    if recipe.parallel == "fsdp":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective
    return DistributedDataParallel(
        objective,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=unused,
        gradient_as_bucket_view=True,
    )


def synchronize_gradients(module: nn.Module, last: bool) -> None:
    """Say whether the next backward pass is the last one of a step, the one that averages gradients."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    elif isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = last
