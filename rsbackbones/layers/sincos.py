"""Fixed 2D sine-cosine position embeddings.

Source: Vaswani et al., Attention is all you need, NeurIPS 2017, in two dimensions as in MAE's code (He et
al., CVPR 2022): the first half of the channels encodes the column, the second half the row.

On a grid other than the trained one, embeddings are computed for its positions, which may be unknown from
training, or the table of the trained grid is interpolated (the two rows of CROMA's table 7).
"""

import torch
from torch import Tensor, nn

from rsbackbones.layers.alibi import grid_positions
from rsbackbones.layers.position_table import resize_position_table


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


class SinCosPositions(nn.Module):
    """Add position embeddings to tokens. Nothing is learned or stored.

    Attributes:
        trained_grid: the grid (h, w) whose table is interpolated; ``None``: no interpolation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trained_grid: tuple[int, int] | None = None

    def forward(self, x: Tensor, grid: tuple[int, int], kept: Tensor | None = None) -> Tensor:
        """[B, N, D] on a grid (h, w) to the same; or [B, K, D] at the places ``kept``, [B, K]."""
        table = self._table(grid, x)
        return x + (table if kept is None else table[kept]).to(x.dtype)

    def _table(self, grid: tuple[int, int], x: Tensor) -> Tensor:
        """Return the embeddings of a grid, [N, D], float32."""
        table = sincos_embedding(grid_positions(*(self.trained_grid or grid), device=x.device), x.shape[-1])
        if self.trained_grid is None:
            return table
        return resize_position_table(table[None], self.trained_grid, grid)[0]


def interpolate_positions(model: nn.Module, trained_grid: tuple[int, int] | None) -> None:
    """Set the trained grid, in patches, from which a model interpolates its sine-cosine positions.

    ``None`` turns interpolation off. The setting is not saved with the weights.

    Raises:
        ValueError: the model has no sine-cosine positions, or the grid is empty.
    """
    modules = [module for module in model.modules() if isinstance(module, SinCosPositions)]
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no sine-cosine positions to interpolate; its other position "
            "encodings work for any grid"
        )
    if trained_grid is not None and min(trained_grid) < 1:
        raise ValueError(f"the trained grid must be (rows, columns) of patches, got {trained_grid}")
    for module in modules:
        module.trained_grid = trained_grid


def interpolated_from(model: nn.Module) -> tuple[int, int] | None:
    """Return the grid from which a model interpolates its positions; ``None`` if it does not."""
    return next((m.trained_grid for m in model.modules() if isinstance(m, SinCosPositions)), None)
