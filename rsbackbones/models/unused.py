"""Parts of a backbone that a forward pass does not use: parameters without effect, modules never called."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rsbackbones.models.backbone import Backbone


def freeze_unused(backbone: "Backbone", run: Callable[..., Iterable[Tensor]]) -> None:
    """Freeze the parameters of a backbone that do not affect the tensors returned by ``run``.

    Data parallelism does not support trainable parameters without a gradient. ``run`` is called in ``eval()``
    mode on small images of all modalities (:meth:`Backbone.example_inputs`), ``run(images)``; for a model
    that consumes series also with ``dates=`` and ``valid=`` as :meth:`Backbone.forward` takes them.
    Parameters that affect either output stay trainable; a batch without dates may then leave some of them
    without a gradient.
    """
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if not trained:
        return
    inputs = backbone.example_inputs()
    with eval_mode(backbone), torch.inference_mode(False), torch.enable_grad():
        outputs = [*run(inputs.images)]
        if backbone.consumes == "series":
            outputs += run(inputs.images, dates=inputs.dates, valid=inputs.valid)
        total: Any = sum(x.float().sum() for x in outputs)
        if total.requires_grad:
            gradients = torch.autograd.grad(total, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.requires_grad_(gradient is not None)


def called_units(backbone: "Backbone") -> list[nn.Module]:
    """Return :meth:`Backbone.units`, after a forward pass on small images has called every one of them.

    Activation checkpointing, compile and FSDP act when a unit is called; on one that is never called they
    would have no effect.

    Raises:
        ValueError: ``encode`` does not call a unit.
    """
    units = backbone.units()
    called: set[int] = set()
    hooks = [unit.register_forward_pre_hook(lambda module, _: called.add(id(module))) for unit in units]
    try:
        with eval_mode(backbone), torch.no_grad():
            backbone.forward_features(backbone.example_inputs().images)
    finally:
        for hook in hooks:
            hook.remove()
    names = {id(module): name for name, module in backbone.named_modules()}
    if missed := [names.get(id(unit), type(unit).__name__) for unit in units if id(unit) not in called]:
        family = type(backbone).__name__
        raise ValueError(
            f"{family}.encode does not call {', '.join(missed[:8])}, which {family}.units() returns: "
            "activation checkpointing, compile and FSDP would have no effect there. Let encode call these "
            "modules themselves (not only their parts), or let units() return the modules that it calls"
        )
    return units


def output_size(head: nn.Module, width: int) -> int:
    """Return the number of outputs of a classifier that takes embeddings of ``width``.

    A linear layer states it, also a quantized or a wrapped one. Other modules are called once.

    Raises:
        ValueError: the module does not take embeddings [B, D].
    """
    if isinstance(stated := getattr(head, "out_features", None), int):
        return stated
    place = next((p for p in (*head.parameters(), *head.buffers()) if p.is_floating_point()), None)
    x = torch.zeros(1, width) if place is None else place.new_zeros(1, width)
    try:
        with eval_mode(head), torch.no_grad():
            return int(head(x).shape[-1])
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the head must take embeddings [B, {width}] (model.num_features), and this "
            f"{type(head).__name__} does not: {error}"
        ) from error


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set ``eval()`` mode, so that BatchNorm does not learn from the zeros of ``example_inputs``."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
