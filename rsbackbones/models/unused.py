"""Parameters that do not affect an output: those of other streams, poolings, norms and blocks."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from rsbackbones.models.backbone import Backbone


class Run(Protocol):
    """The outputs of a model for images by modality, called as :meth:`Backbone.forward` is."""

    def __call__(self, images: dict[str, Tensor], **series: Any) -> Iterable[Tensor]:
        """Return the outputs; ``series`` is empty, or holds ``dates`` and ``valid``."""
        ...


def freeze_unused(backbone: Backbone, run: Run) -> None:
    """Freeze the parameters of a backbone that do not affect the tensors returned by ``run``.

    Data parallelism does not support trainable parameters without a gradient. ``run`` is called in ``eval()``
    mode on small images of all modalities (:meth:`Backbone.example_inputs`); for a model that consumes series
    once without and once with dates and missing images. Parameters that affect either output stay
    trainable; a batch without dates may then leave some of them without a gradient.
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
