"""A digest of a model's current weights."""

import hashlib

import torch

from rsbackbones.models.backbone import Backbone


def weights_digest(model: Backbone) -> str:
    """Return the sha256 of a model's current weights, without its head, which does not affect features.

    It differs from the digest of the weights file if adaptation or training changed the weights.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
