"""Parameters that an output does not depend on: of other streams, of poolings, norms and blocks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rsbackbones.models.backbone import Backbone


def freeze_unused(backbone: Backbone, run: Callable[[dict[str, Tensor]], Iterable[Tensor]]) -> None:
    """Take the gradients from the parameters of a backbone that the tensors ``run`` returns do not depend on.

    Data parallelism refuses parameters that a loss never reaches. ``run`` is given small images of all
    sensors (``Backbone.example_inputs``) and called once, in ``eval()`` mode.
    """
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if not trained:
        return
    was_training = backbone.training
    backbone.eval()  # what is normalized over batches must not learn from zeros
    try:
        with torch.inference_mode(False), torch.enable_grad():
            total: Any = sum(x.float().sum() for x in run(backbone.example_inputs()))
            if total.requires_grad:
                gradients = torch.autograd.grad(total, trained, allow_unused=True)
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.requires_grad_(gradient is not None)
    finally:
        backbone.train(was_training)
