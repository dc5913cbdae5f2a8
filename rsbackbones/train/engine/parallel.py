"""Wrappers around a module: activation checkpointing, then compilation, then DDP or FSDP2.

None of them changes parameter names or the state dict.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rsbackbones.layers.activation_checkpointing import checkpoint_activations
from rsbackbones.train.engine.config import RunOptions
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.module import TrainModule


def parallelize(module: TrainModule, config: RunOptions, device: torch.device, *, unused: bool) -> nn.Module:
    """Return the wrapped module, whose forward a step calls.

    Args:
        module: the module to train. Its :meth:`~TrainModule.units` are wrapped separately.
        config: the options of the run.
        device: the device of this process.
        unused: whether some batches leave some parameters without a gradient.

    Raises:
        TrainingError: an option requires units, and the module has none.
    """
    distributed = dist.is_initialized() and dist.get_world_size() > 1
    sharded = distributed and config.parallel == "fsdp"
    needs = {
        "activation_checkpointing=true": config.activation_checkpointing,
        "compile=true": config.compile,
        "parallel=fsdp": sharded,
    }
    units = module.units() if any(needs.values()) else []
    if not units and (asked := [name for name, needed in needs.items() if needed]):
        raise TrainingError(
            f"{', '.join(asked)} applies to the units of a module, and {type(module).__name__}.units() "
            "returns none: return the network's blocks, or leave this option out"
        )
    if config.activation_checkpointing:
        checkpoint_activations(units)
    if config.compile:
        for unit in units:
            # Batches of different sources may have different sizes.
            unit.compile(dynamic=None)
    if not distributed:
        return module
    if sharded:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for unit in units:
            fully_shard(unit, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=unused,
        gradient_as_bucket_view=True,
        # Buffers are synchronized when they are saved; see TrainRun.state.
        broadcast_buffers=False,
    )


def synchronize_gradients(module: nn.Module, last: bool) -> None:
    """Average gradients over processes in the next backward pass only if it is the last one of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    elif isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = last


def broadcast_buffers(buffers: "list[torch.Tensor]") -> None:
    """Copy the buffers of the first process to all others, in place."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in buffers:
            dist.broadcast(buffer, src=0)
