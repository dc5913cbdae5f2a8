"""What decides what a model makes of an image: the key of what is kept of it."""

import dataclasses
import hashlib
from typing import Any

import torch
from torch import nn

from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.models.config import as_json


def identity(model: nn.Module) -> dict[str, Any]:
    """Return what decides what a model makes of an image, as JSON takes it: the key of what is kept of it."""
    backbone = unwrap_model(model)
    return {
        "weights": weights_digest(backbone),
        "architecture": backbone.architecture,
        "config": as_json(backbone.config),
        "inputs": {
            m: dataclasses.asdict(backbone.inputs[m]) for m in backbone.modalities if m in backbone.inputs
        },
        **backbone.feature_options(),
        "torch": torch.__version__,
    }


def weights_digest(model: Backbone) -> str:
    """Return the sha256 of a model's weights as they are now, without its head.

    That of the file does not do: bands adapt weights, and training changes them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
