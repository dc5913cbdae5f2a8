"""The lattice of windows over a scene: which windows a block of the feature map needs, and how they blend.

The lattice belongs to the whole scene, so that a block has the same features whichever blocks it is cut into.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.data.windows import blend_weights, window_starts
from rsbackbones.models.backbone import Backbone


class Block(NamedTuple):
    """A rectangle of cells of the feature map: rows ``top`` to ``bottom``, columns ``left`` to ``right``."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True)
class Lattice:
    """Overlapping windows that cover a feature map, all lengths in cells.

    Args:
        rows: of the feature map.
        columns: of the feature map.
        window: the side of a window.
        overlap: by how much windows overlap.
    """

    rows: int
    columns: int
    window: int
    overlap: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a window; a map smaller than a window is one window."""
        return min(self.window, self.rows), min(self.window, self.columns)

    @cached_property
    def tops(self) -> list[int]:
        """The first row of each row of windows."""
        return window_starts(self.rows, self.window, self.overlap)

    @cached_property
    def lefts(self) -> list[int]:
        """The first column of each column of windows."""
        return window_starts(self.columns, self.window, self.overlap)

    @cached_property
    def weights(self) -> npt.NDArray[np.float32]:
        """The weight of each cell of a window, [h, w]."""
        height, width = self.size
        return blend_weights(height, self.overlap)[:, None] * blend_weights(width, self.overlap)

    def rows_of_windows(self, block: Block) -> list[list[tuple[int, int]]]:
        """Return the (top, left) of all windows that touch a block, one list for each row of windows."""
        height, width = self.size
        lefts = [left for left in self.lefts if left < block.right and left + width > block.left]
        return [
            [(top, left) for left in lefts]
            for top in self.tops
            if top < block.bottom and top + height > block.top
        ]

    def covered(self, rows: Sequence[Sequence[tuple[int, int]]]) -> Block:
        """Return the block that rows of windows cover."""
        height, width = self.size
        (top, left), (last_top, last_left) = rows[0][0], rows[-1][-1]
        return Block(top, left, last_top + height, last_left + width)


class Blend:
    """The weighted mean of windows over a block, in the order in which they are added.

    Args:
        lattice: of the windows.
        block: whose cells are kept.
        dim: the number of features of a cell.
    """

    def __init__(self, lattice: Lattice, block: Block, dim: int) -> None:
        self._lattice, self._block = lattice, block
        self._sum = np.zeros((*block.shape, dim), np.float32)
        self._weight = np.zeros((*block.shape, 1), np.float32)
        self._complete = np.zeros(block.shape, bool)
        self._counts = np.ones(block.shape, np.float32)

    def add(self, top: int, left: int, values: Array, has_data: Array, counts: Array) -> None:
        """Add the features [h, w, D] of the window at a cell.

        Args:
            top: the row of its first cell.
            left: the column.
            values: the features.
            has_data: the share of a cell's pixels that have data; where not all have, it has no features.
            counts: the share that counts by a mask.
        """
        block, (height, width) = self._block, self._lattice.size
        first, last = max(top, block.top), min(top + height, block.bottom)
        begin, end = max(left, block.left), min(left + width, block.right)
        within = slice(first - top, last - top), slice(begin - left, end - left)
        here = slice(first - block.top, last - block.top), slice(begin - block.left, end - block.left)
        weights = self._lattice.weights[within][..., None]
        self._sum[here] += values[within] * weights
        self._weight[here] += weights
        self._complete[here] = has_data[within] == 1
        self._counts[here] = counts[within]

    def take(self, rows: int) -> tuple[Array, Array]:
        """Return the features [rows, columns, D] and the shares that count [rows, columns] of the first rows,
        which are final, and go on with the block that begins below them.
        """
        features = self._sum[:rows] / self._weight[:rows]
        features[~self._complete[:rows]] = np.nan
        counts = self._counts[:rows].copy()
        for held, fresh in ((self._sum, 0), (self._weight, 0), (self._complete, False), (self._counts, 1)):
            held[:-rows] = held[rows:].copy()
            held[-rows:] = fresh
        self._block = self._block._replace(top=self._block.top + rows, bottom=self._block.bottom + rows)
        return features, counts

    def result(self) -> npt.NDArray[np.float32]:
        """Return the features [rows, columns, D]; NaN in cells without data. The sums become the result."""
        np.divide(self._sum, self._weight, out=self._sum, where=self._weight > 0)
        self._sum[~self._complete] = np.nan
        return self._sum


def window_unit(model: Backbone) -> int:
    """Return the unit of window sides in pixels: whole cells, and sizes that the model takes."""
    return math.lcm(model.stride, model.size_multiple)


def map_shape(model: Backbone, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of the feature map of a scene.

    Raises:
        ValueError: the scene is smaller than what the model needs.
    """
    cell, unit = model.stride, window_unit(model)
    rows, columns = (-(-n // cell) if model.pad else n // unit * unit // cell for n in (height, width))
    if not rows or not columns:
        raise ValueError(
            f"the scene has {height} x {width} pixels, and the model needs {unit} or more; "
            "have it padded: create_model(..., pad=True) (--pad)"
        )
    return rows, columns


def window_sides(model: Backbone, window: int | None, overlap: int | None) -> tuple[int, int]:
    """Return side and overlap of windows in pixels, by default those that suit the model.

    Raises:
        ValueError: they are no multiples of what the model needs.
    """
    unit = window_unit(model)
    side = window
    if side is None:  # where cells are large, four of them at least, so that windows can overlap
        side = max(min(model.config.image_sides) // unit, 1 if unit == model.size_multiple else 4) * unit
    fewest = int(window is None and side > unit)
    shared = max(side * 2 // 5 // unit, fewest) * unit if overlap is None else overlap
    if side < unit or side % unit or shared % model.stride or not 0 <= shared < side:
        raise ValueError(
            f"window and overlap must be multiples of {unit} pixels, the overlap smaller than the window; "
            f"got window {side}, overlap {shared}"
        )
    return side, shared


def batches(rows: Sequence[Sequence[tuple[int, int]]], batch_size: int) -> list[list[tuple[int, int]]]:
    """Return the windows of each row in batches, which do not cross rows."""
    return [list(row[i : i + batch_size]) for row in rows for i in range(0, len(row), batch_size)]
