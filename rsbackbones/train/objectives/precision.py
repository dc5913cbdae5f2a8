"""Computation of losses in float32 or wider, independent of the model's precision."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Convert to float32; float64 is kept."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> torch.autocast:
    """Return a context that disables autocast on the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False)
