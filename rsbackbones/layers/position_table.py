"""Position embedding tables: learned ones, and resizing to another grid.

Source: Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021, sections 3.1 and 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_position_table(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], *, prefix: int = 0
) -> Tensor:
    """Resize a position embedding table to another grid, by bicubic interpolation in float32.

    Args:
        table: [1, P + h * w, D]; the first P rows belong to prefix tokens (such as a class token) and are
            kept.
        old_grid: (h, w), the grid of the table, in patches.
        new_grid: (h', w'), the requested grid.
        prefix: P.

    Returns:
        [1, P + h' * w', D] with the dtype of the table; the table itself if the grids are equal.

    Raises:
        ValueError: the table does not fit that grid and prefix, or a grid is empty.
    """
    (h, w), size = old_grid, tuple(new_grid)
    if table.ndim != 3 or table.shape[0] != 1 or prefix < 0 or table.shape[1] != prefix + h * w:
        raise ValueError(
            f"expected a position table [1, {prefix} + {h} * {w}, D] for {prefix} prefix tokens and a grid "
            f"of {h} x {w}, got {list(table.shape)}; check old_grid= and prefix="
        )
    if any(side < 1 for side in (h, w, *size)):
        raise ValueError(f"a grid has at least one row and one column, got {old_grid} and {new_grid}")
    if not torch.compiler.is_compiling() and size == (h, w):  # one traced program serves all grids
        return table
    maps = table[:, prefix:].unflatten(1, (h, w)).permute(0, 3, 1, 2)  # [1, D, h, w]
    maps = F.interpolate(maps.float(), size, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], maps.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class LearnedPositions(nn.Module):
    """Add a learned position table to tokens. It is interpolated for grids other than its own.

    Args:
        grid: (h, w), of the table, in patches.
        dim: D.
    """

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim))
        nn.init.normal_(self.table, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """See :mod:`rsbackbones.layers.weight_decay`."""
        return {"table"}

    def forward(self, x: Tensor, grid: tuple[int, int], kept: Tensor | None = None) -> Tensor:
        """[B, N, D] on a grid (h, w) to the same; or [B, K, D] at the places ``kept``, [B, K]."""
        table = resize_position_table(self.table, self.grid, grid)[0].to(x.dtype)
        return x + (table if kept is None else table[kept])
