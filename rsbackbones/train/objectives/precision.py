"""Losses are computed in float32 at least, whatever the model runs in."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or in float64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which matrix products on the device of ``x`` keep their precision."""
    return torch.autocast(x.device.type, enabled=False)
