"""Whether a forward pass is being traced, on every version of torch that is supported."""

import torch

# torch 2.7 and newer. Exported programs and FlexAttention were not found to work before.
SINCE_2_7 = hasattr(torch.compiler, "is_exporting")


def is_exporting() -> bool:
    """Return whether ``torch.export`` traces this call; torch 2.6 cannot tell it from ``torch.compile``."""
    return torch.compiler.is_exporting() if SINCE_2_7 else torch.compiler.is_compiling()
