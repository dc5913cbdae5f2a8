"""Weights as they are now, in one number."""

import hashlib

import torch

from rsbackbones.models.backbone import Backbone


def weights_digest(model: Backbone) -> str:
    """Return the sha256 of a model's weights as they are now, without its head, which features do not see.

    That of the file does not do: bands adapt weights, and training changes them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
