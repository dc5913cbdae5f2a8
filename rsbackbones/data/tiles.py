"""Overlapping square tiles of large images: cut, and merged by their mean.

Source: SeaMo, sections 4.2.3 and 4.2.4 (SegMunich and OSCD in tiles of 128 pixels that overlap by half, after
SpectralGPT). How overlapping predictions are merged is left open there; here a pixel gets the plain mean of
the tiles that cover it.

Tiles begin every ``tile - overlap`` pixels; the last is moved back to end at the edge. A side shorter than a
tile gets one tile, padded by repeating the last pixels; predictions there are cropped.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rsbackbones.data.labelled.crops import Crops
from rsbackbones.data.labelled.dataset import Array, LabelledDataset, label_scale
from rsbackbones.data.windows import window_starts

TILE = 128
OVERLAP = 64


@dataclass(frozen=True)
class Tiling:
    """The tiles of an image of ``height`` x ``width`` pixels; ``tile`` and ``overlap`` are in pixels.

    Raises:
        ValueError: an overlap that is not smaller than the tile, or no pixels.
    """

    height: int
    width: int
    tile: int = TILE
    overlap: int = OVERLAP

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"there is nothing to cut from {self.height} x {self.width} pixels")
        if not 0 <= self.overlap < self.tile:
            raise ValueError(
                f"tiles overlap by less than their side, got tile {self.tile} and overlap {self.overlap}"
            )

    @cached_property
    def corners(self) -> list[tuple[int, int]]:
        """The (top, left) of every tile, row by row."""
        tops, lefts = (window_starts(n, self.tile, self.overlap) for n in (self.height, self.width))
        return [(top, left) for top in tops for left in lefts]

    def cut(self, image: Tensor, corners: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """[..., H, W] to the tiles at ``corners`` (default all), [n, ..., tile, tile]."""
        return torch.stack([self._window(image, *corner) for corner in corners or self.corners])

    def merge(self, batches: Iterable[Tensor]) -> Tensor:
        """Return the mean of overlapping tiles, [K, H * s, W * s].

        Args:
            batches: the tiles [b, K, tile * s, tile * s] of all corners, in their order, in batches of any
                size, taken one by one; s is a whole number, more than 1 with super-resolution.

        Raises:
            ValueError: too few or too many tiles, or of another size.
        """
        total, scale = torch.empty(0), 0
        corners = iter(self.corners)
        for batch in batches:
            if not scale:
                scale = max(1, batch.shape[-1] // self.tile)
                total = batch.new_zeros(batch.shape[1], self.height * scale, self.width * scale)
            side = self.tile * scale
            if batch.shape[1:] != (len(total), side, side):
                raise ValueError(f"expected tiles {[len(total), side, side]}, got {list(batch.shape[1:])}")
            for values in batch:
                corner = next(corners, None)
                if corner is None:
                    raise ValueError(f"expected {len(self.corners)} tiles, got more")
                part = total[:, corner[0] * scale :, corner[1] * scale :][:, :side, :side]
                part += values[:, : part.shape[1], : part.shape[2]]
        if next(corners, None) is not None:
            raise ValueError(f"expected {len(self.corners)} tiles, got fewer")
        rows, columns = (
            torch.from_numpy(self._times_covered(n)).repeat_interleave(scale).to(total)
            for n in (self.height, self.width)
        )
        return total / (rows[:, None] * columns)

    def _window(self, image: Tensor, top: int, left: int) -> Tensor:
        """[..., H, W] to [..., tile, tile]."""
        for dim, start, size in ((-2, top, self.height), (-1, left, self.width)):
            image = image.narrow(dim, start, min(self.tile, size))
            if size < self.tile:
                places = torch.arange(self.tile, device=image.device).clamp(max=size - 1)
                image = image.index_select(dim, places)
        return image

    def _times_covered(self, length: int) -> Array:
        """Return the number of tiles that cover each row (or column)."""
        times = np.zeros(length, np.int64)
        for start in window_starts(length, self.tile, self.overlap):
            times[start : start + self.tile] += 1
        return times


def tiles_of(
    data: LabelledDataset, split: str, *, tile: int = TILE, overlap: int = OVERLAP
) -> LabelledDataset:
    """Return one split of a data set of label maps as a data set of tiles, to train on.

    Padding of a tile is ignored in its label. All images are read once for their sizes.

    Raises:
        ValueError: the labels are no maps, there is no such split, or as :class:`Tiling`.
    """
    if data.task not in ("pixels", "change"):
        raise ValueError(f"tiles need a label for every pixel; {data.name} has {data.task}")
    if split not in data.splits:
        raise ValueError(f"{data.name} has no split {split!r}; it has {', '.join(data.splits)}")
    places: list[tuple[int, int, int]] = []
    for index in data.splits[split].tolist():
        sample = data.read(index)
        try:
            height, width = (side // label_scale(sample) for side in sample["label"].shape)
        except ValueError as error:
            raise ValueError(f"{data.ids[index]}: {error}") from error
        places += [(index, *corner) for corner in Tiling(height, width, tile, overlap).corners]
    described = f"{data.digest} {split} {tile} {overlap}"
    return replace(
        data,
        name=f"{data.name}, tiles of {tile} px",
        ids=tuple(f"{data.ids[i]}:{top}:{left}" for i, top, left in places),
        splits={split: np.arange(len(places))},
        read=Crops(data.read, (tile, tile), np.array(places, np.int64)),
        digest=hashlib.sha256(described.encode()).hexdigest(),
        notes=(*data.notes, f"cut into tiles of {tile} pixels that overlap by {overlap}"),
    )
