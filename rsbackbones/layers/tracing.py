"""Whether a forward pass is being traced, on every version of torch that is supported."""

import torch


def is_exporting() -> bool:
    """Return whether ``torch.export`` traces this call; torch 2.6 cannot tell it from ``torch.compile``."""
    found: bool = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()
    return found
