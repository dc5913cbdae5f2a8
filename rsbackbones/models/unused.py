"""Parameters that do not affect an output: those of other streams, poolings, norms and blocks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rsbackbones.models.backbone import Backbone


def freeze_unused(backbone: Backbone, run: Callable[..., Iterable[Tensor]]) -> None:
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
    was_training = backbone.training
    backbone.eval()  # BatchNorm must not learn from zeros
    inputs = backbone.example_inputs()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            outputs = [*run(inputs.images)]
            if backbone.consumes == "series":
                outputs += run(inputs.images, dates=inputs.dates, valid=inputs.valid)
            total: Any = sum(x.float().sum() for x in outputs)
            if total.requires_grad:
                gradients = torch.autograd.grad(total, trained, allow_unused=True)
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.requires_grad_(gradient is not None)
    finally:
        backbone.train(was_training)
