"""What training changes in a backbone or reads from it.

These are drop path, the depth of every parameter, and gradients for data parallelism.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from rsbackbones.models.backbone import Backbone


def set_drop_path(model: "Backbone", rate: float) -> None:
    """See :meth:`Backbone.set_drop_path`."""
    if not 0 <= rate < 1:
        raise ValueError(f"the drop path rate must be in [0, 1), got {rate}")
    found = {}
    for stream in model.stream_inputs:
        stages = [model.get_submodule(stage.module) for stage in model.stages(stream)]
        modules = [m for stage in stages for m in stage.modules()]
        found[stream] = [m for m in modules if isinstance(getattr(m, "drop_path", None), float)]
    if rate and not any(found.values()):
        raise ValueError(f"{model.architecture} has no residual blocks with drop path; set its rate to 0")
    for blocks in found.values():
        for i, block in enumerate(blocks):
            block.drop_path = rate * i / max(1, len(blocks) - 1)  # type: ignore[assignment]


def parameter_depths(model: "Backbone") -> dict[str, int]:
    """See :meth:`Backbone.parameter_depths`."""
    family = type(model).__name__
    names = {id(p): name for name, p in model.named_parameters()}
    depths = {name: 0 for name in names.values() if "." not in name}
    for depth, group in enumerate(model.layer_groups()):
        for module in group:
            for parameter in module.parameters():
                name = names.get(id(parameter))
                if name is None:
                    raise ValueError(
                        f"{family}.layer_groups lists a {type(module).__name__} that is not part of the "
                        "model: list modules that the model has registered, such as self.stem"
                    )
                if depths.setdefault(name, depth) != depth:
                    raise ValueError(f"{family}.layer_groups lists {name} twice")
    if lacking := [name for name in names.values() if name not in depths]:
        raise ValueError(f"{family}.layer_groups omits {', '.join(lacking[:8])}")
    return depths


def connect_unused(model: "Backbone", output: Tensor) -> Tensor:
    """Return ``output``, for which parameters that it does not depend on have zero gradients, not none.

    ``DistributedDataParallel`` waits for the gradient of every parameter. Those of other streams, or of a
    sensor that a batch lacks, have none. In a single process the output is returned as it is.
    """
    if not (dist.is_available() and dist.is_initialized()) or torch.compiler.is_compiling():
        return output
    if not output.requires_grad:
        return output
    from torch.distributed.tensor import DTensor

    trained = [p for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    reached, seen, todo = set(), set(), [output.grad_fn]
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))
        todo += [following for following, _ in node.next_functions]
    unused = [p for p in trained if id(p) not in reached]
    connected: Tensor = _WithZeroGradients.apply(output, *unused) if unused else output
    return connected


class _WithZeroGradients(torch.autograd.Function):
    """Returns its first input. The gradients of the others are zeros."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients[0], *(torch.zeros_like(p) for p in ctx.saved_tensors)
