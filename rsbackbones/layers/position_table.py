"""Position embedding tables: learned ones, and resizing to another grid.

Source: Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021, sections 3.1 and 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_position_table(
    table: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    prefix: int = 0,
    antialias: bool = False,
) -> Tensor:
    """Resize a position embedding table to another grid, by bicubic interpolation in float32.

    Args:
        table: [1, P + h * w, D]; the first P rows belong to prefix tokens (such as a class token) and are
            kept.
        old_grid: (h, w), the grid of the table, in patches.
        new_grid: (h', w'), the requested grid.
        prefix: P.
        antialias: widen the kernel where the table shrinks, and use timm's and Pillow's cubic (a = -0.5
            instead of -0.75) at every size.

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
    if antialias:
        rows, columns = (_cubic_weights(old, new, maps) for old, new in zip((h, w), size, strict=True))
        maps = rows @ maps.float() @ columns.T
    else:
        maps = F.interpolate(maps.float(), size, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], maps.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _cubic_weights(old: int, new: int, like: Tensor) -> Tensor:
    """Return the matrix [new, old] of an antialiased cubic interpolation, on the device of ``like``.

    The same as ``F.interpolate(..., mode="bicubic", antialias=True)``, which ONNX cannot express for a size
    that is known only when the graph runs.
    """
    places = torch.arange(new, device=like.device, dtype=torch.float32)
    cells = torch.arange(old, device=like.device, dtype=torch.float32)
    scale = old / places.new_ones(new).sum()  # a tensor: `new` may be symbolic in a traced program
    width = scale.clamp(min=1)
    x = (((places[:, None] + 0.5) * scale - 0.5 - cells) / width).abs()  # [new, old]
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(dim=1, keepdim=True)


class LearnedPositions(nn.Module):
    """Add a learned position table to tokens. It is interpolated for grids other than its own.

    Args:
        grid: (h, w), of the table, in patches.
        dim: D.
        prefix: P, the rows of prefix tokens (such as a class token) before those of the patches.
        antialias: see :func:`resize_position_table`.
    """

    def __init__(self, grid: tuple[int, int], dim: int, *, prefix: int = 0, antialias: bool = False) -> None:
        super().__init__()
        self.grid, self.prefix, self.antialias = grid, prefix, antialias
        self.table = nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], dim))
        nn.init.normal_(self.table, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """See :mod:`rsbackbones.layers.weight_decay`."""
        return {"table"}

    def forward(self, x: Tensor, grid: tuple[int, int], kept: Tensor | None = None) -> Tensor:
        """[B, P + N, D] on a grid (h, w) to the same; or [B, P + K, D] at the places ``kept``, [B, K]."""
        table = resize_position_table(
            self.table, self.grid, grid, prefix=self.prefix, antialias=self.antialias
        )[0].to(x.dtype)  # [P + N, D]
        if kept is None:
            return x + table
        first = torch.arange(self.prefix, device=kept.device).expand(kept.shape[0], -1)  # [B, P]
        return x + table[torch.cat([first, kept + self.prefix], dim=1)]
