"""What cached features and results depend on: the model, the data and its splits."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.models.config import as_json
from rsbackbones.zoo.fingerprint import weights_digest


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return what the features of a model depend on, as JSON takes it."""
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


def split_digest(data: LabelledDataset) -> str:
    """Return a digest of the data and of its splits."""
    digest = hashlib.sha256(data.digest.encode())
    for name in sorted(data.splits):
        digest.update(name.encode() + np.asarray(data.splits[name], np.int64).tobytes())
    return digest.hexdigest()
