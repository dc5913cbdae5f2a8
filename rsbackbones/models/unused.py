"""Parameters that do not affect an output: those of other streams, poolings, norms and blocks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rsbackbones.models.backbone import Backbone


def freeze_unused(backbone: Backbone, run: Callable[[dict[str, Tensor]], Iterable[Tensor]]) -> None:
    """Freeze the parameters of a backbone that do not affect the tensors returned by ``run``.

    Data parallelism does not support trainable parameters without a gradient. ``run`` is called once, in
    ``eval()`` mode, on small images of all modalities (``Backbone.example_inputs``).
    """
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if not trained:
        return
    was_training = backbone.training
    backbone.eval()  # BatchNorm must not learn from zeros
    try:
        with torch.inference_mode(False), torch.enable_grad():
            total: Any = sum(x.float().sum() for x in run(backbone.example_inputs()))
            if total.requires_grad:
                gradients = torch.autograd.grad(total, trained, allow_unused=True)
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.requires_grad_(gradient is not None)
    finally:
        backbone.train(was_training)
