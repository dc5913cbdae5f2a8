"""Bands of 10, 20 and 60 m brought to one grid of pixels."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Array = npt.NDArray[Any]


def to_grid(image: Array, height: int, width: int) -> Array:
    """Resize [..., h, w] to [..., height, width], bilinearly; integers are rounded and keep their type.

    Bilinear and not nearest: the edges of 20 and 60 m pixels repeated on the 10 m grid are a pattern that a
    network would learn. A NaN spreads to all pixels that it touches.
    """
    if image.shape[-2:] == (height, width):
        return image
    flat = torch.from_numpy(image.reshape(-1, 1, *image.shape[-2:]).astype(np.float32))
    fine = F.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False).numpy()
    fine = fine.reshape(*image.shape[:-2], height, width)
    # Bilinear values lie between their neighbors, so rounding stays in the range of the type.
    return (fine.round() if image.dtype.kind in "iu" else fine).astype(image.dtype)


def same_extent(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether images of these (height, width) can be of one place: one ratio, each side within a pixel.

    A place of 339 x 563 pixels of 10 m may have 170 x 281 of 20 m: one side was rounded up, the other down.
    """
    fine, coarse = max(size, other), min(size, other)
    smallest = max(f / (c + 1) for f, c in zip(fine, coarse, strict=True))
    largest = min(f / (c - 1) if c > 1 else float("inf") for f, c in zip(fine, coarse, strict=True))
    return smallest <= largest
