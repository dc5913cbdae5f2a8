"""Fixed 2D sine-cosine position embeddings.

Source: Vaswani et al., Attention is all you need, NeurIPS 2017, in two dimensions as in MAE's code (He et
al., CVPR 2022): the first half of the channels encodes the column, the second half the row.
"""

import torch
from torch import Tensor


def sincos_embedding(positions: Tensor, dim: int) -> Tensor:
    """Return the embeddings of patch positions.

    Args:
        positions: (row, column), [..., N, 2], in patches.
        dim: the width, a multiple of 4.

    Returns:
        [..., N, dim], float32: sines and cosines of the column, then of the row, each at dim / 4
        frequencies from 1 to nearly 1/10000 per patch.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {dim}")
    count = dim // 4
    steps = torch.arange(count, device=positions.device, dtype=torch.float32)
    frequencies = 10000.0 ** (-steps / count)
    row, column = (x[..., None] * frequencies for x in positions.float().unbind(-1))  # [..., N, dim / 4]
    return torch.cat((column.sin(), column.cos(), row.sin(), row.cos()), dim=-1)
