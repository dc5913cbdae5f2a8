"""What decides what a model makes of an image: the key of what is kept of it."""

import dataclasses
from typing import Any

import torch
from torch import nn

from rsbackbones.models.backbone import unwrap_model
from rsbackbones.models.config import as_json
from rsbackbones.zoo.fingerprint import weights_digest


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
