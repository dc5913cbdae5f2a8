"""2D-ALiBi and X-ALiBi: an attention bias from the distance between patches.

Source: Fuller, Millard and Green, CROMA, NeurIPS 2023, section 2 and figure 2, after Press et al.,
ALiBi, ICLR 2022. The bias of head m between the patches at p and q is ``-slope_m * |p - q|``, with the
Euclidean distance in patches. X-ALiBi is the same between the queries of one sensor and the keys of
another. Nothing is learned or stored: the bias is computed from positions.

A table of all pairs grows with the square of the patches: 3 MB at 120 px of patch 8 with 16 heads, 17 GB at
1024 px. So :func:`bias_between` gives the table while it is small, and else an :class:`AlibiBias`, of which
attention computes a few queries' rows at a time.
"""

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from rsbackbones.layers.tracing import is_exporting

# The largest table in bytes, by kind of device: on two CPU cores blocks are faster than a larger one; on CUDA
# (not measured) it is what a GPU has to spare.
LARGEST_TABLE = {"cpu": 64 * 2**20, "cuda": 2**30}
# Tables of whole grids, the newest last; a model that sees one size makes its table once.
_TABLES: dict[tuple[object, ...], Tensor] = {}
_NUM_TABLES = 4
_LOCK = threading.Lock()


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """Return the slope of every head, [num_heads], positive, float32.

    For a power of two this is the geometric sequence from 2^(-8/num_heads) to 2^-8. For other numbers it is
    the slopes of the next lower power of two, followed by every second slope of the next higher one (ALiBi's
    rule).

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


def distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Return Euclidean distances of positions [..., Nq, 2] and [..., Nk, 2]: [..., Nq, Nk], in patches."""
    # torch.cdist may use a matrix product, which is not exact. Rotations and flips are exact only if equal
    # distances have equal biases.
    down = queries[..., :, None, 0] - keys[..., None, :, 0]
    right = queries[..., :, None, 1] - keys[..., None, :, 1]
    return (down.square() + right.square()).sqrt()


def alibi_bias(queries: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """Return the additive attention bias between patch positions.

    Args:
        queries: positions (row, column) of the queries, [..., Nq, 2], in patches. They may be a
            subset of a grid (the patches kept by a mask). Leading dimensions are batches.
        keys: positions of the keys, [..., Nk, 2], with the same leading dimensions.
        num_heads: number of attention heads.

    Returns:
        [..., num_heads, Nq, Nk], float32, zero at equal positions and negative elsewhere.
    """
    distance = distances(queries, keys).unsqueeze(-3)  # [..., 1, Nq, Nk]
    return distance * -alibi_slopes(num_heads, queries.device).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class AlibiBias:
    """The bias between two sets of positions, [..., Nq, 2] and [..., Nk, 2], computed on demand."""

    queries: Tensor
    keys: Tensor
    num_heads: int


def bias_between(
    queries: Tensor, keys: Tensor, num_heads: int, dtype: torch.dtype, *, grid: tuple[int, int] | None = None
) -> Tensor | AlibiBias:
    """Return the bias for attention: a table if it is small, else an :class:`AlibiBias`.

    Args:
        queries, keys, num_heads: as for :func:`alibi_bias`.
        dtype: the dtype of attention and of the table, which is computed in float32.
        grid: (h, w), if queries and keys are all positions of this grid; the table is then cached.
    """
    size = queries[..., 0].numel() * keys.shape[-2] * num_heads * dtype.itemsize
    largest = LARGEST_TABLE.get(queries.device.type, LARGEST_TABLE["cpu"])
    if not is_exporting() and size > largest:
        return AlibiBias(queries, keys, num_heads)
    if grid is None or torch.compiler.is_compiling():
        return alibi_bias(queries, keys, num_heads).to(dtype)
    key = (grid, num_heads, dtype, queries.device)
    if (kept := _TABLES.get(key)) is not None:
        return kept
    with torch.inference_mode(False):  # it may serve a training step later
        table = alibi_bias(queries, keys, num_heads).to(dtype)
    if type(table) is Tensor:  # not a tracer's
        with _LOCK:
            _TABLES[key] = table
            while len(_TABLES) > _NUM_TABLES:
                _TABLES.pop(next(iter(_TABLES)))
    return table
