"""Images at another size, and pixels that are filled."""

import torch
from torch import Tensor, nn


def resize(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return [..., C, H, W] at a size, (height, width): bilinear, with antialiasing."""
    if size is None or x.shape[-2:] == size:
        return x
    flat = x.reshape(-1, *x.shape[-3:])
    fine: Tensor = nn.functional.interpolate(
        flat, size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return fine.reshape(*x.shape[:-2], *size)


def fill_missing(x: Tensor, missing: Tensor, modality: str) -> Tensor:
    """Fill missing pixels [..., H, W] of [..., C, H, W] with the mean of their band over their image."""
    if not missing.any():
        return x
    held = (~missing)[..., None, :, :]
    count = held.sum((-2, -1), keepdim=True)
    if not count.all():
        raise ValueError(f"{modality}: an image has no pixel with data; leave it out")
    mean = torch.where(held, x, 0).double().sum((-2, -1), keepdim=True) / count
    return torch.where(held, x, mean.float())
