"""2D-ALiBi and X-ALiBi: attention biased by the distance between patches.

Source: Fuller, Millard and Green, CROMA, NeurIPS 2023, section 2 and figure 2, after Press et al.,
ALiBi, ICLR 2022. The bias of head m between the patches at p and q is ``-slope_m * |p - q|``, with the
Euclidean distance in patches. X-ALiBi is the same between the queries of one sensor and the keys of
another. Nothing here is learned or stored: a bias is computed from positions when it is needed.
"""

import math

import torch
from torch import Tensor


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """Return the slope of every head, [num_heads], positive, float32.

    For a power of two the geometric sequence from 2^(-8/num_heads) to 2^-8; for any other number the
    slopes of the power of two below it, then every second slope of the power above (ALiBi's rule).

    Raises:
        ValueError: ``num_heads`` is not positive.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be positive, got {num_heads}")
    below = 2 ** math.floor(math.log2(num_heads))
    steps = torch.arange(1, below + 1, device=device, dtype=torch.float32)
    slopes = torch.exp2(steps * (-8 / below))
    if below == num_heads:
        return slopes
    between = torch.exp2((2 * steps[: num_heads - below] - 1) * (-4 / below))
    return torch.cat((slopes, between))


def grid_positions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the (row, column) of every patch of a grid in row-major order, [height * width, 2]."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((row, column), dim=-1).flatten(0, 1)


def alibi_bias(queries: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """Return the additive attention bias between patch positions.

    Args:
        queries: positions (row, column) of the queries, [..., Nq, 2], in patches. A subset of a grid
            (the patches that a mask keeps) is as good as all of it; leading dimensions are batches.
        keys: positions of the keys, [..., Nk, 2], with the same leading dimensions.
        num_heads: number of attention heads.

    Returns:
        [..., num_heads, Nq, Nk], float32, zero at equal positions and negative elsewhere.
    """
    # Differences rather than torch.cdist: cdist may go through a matrix product and lose exactness, and
    # equal distances must give equal biases for rotations and flips to be exact.
    delta = queries.unsqueeze(-2) - keys.unsqueeze(-3)  # [..., Nq, Nk, 2]
    distance = delta.square().sum(-1).sqrt().unsqueeze(-3)  # [..., 1, Nq, Nk]
    return distance * -alibi_slopes(num_heads, queries.device).view(-1, 1, 1)
