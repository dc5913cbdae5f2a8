"""Where the windows and tiles of a large image begin, and how overlapping windows are blended."""

import numpy as np
import numpy.typing as npt


def tile_starts(size: int, tile: int) -> tuple[int, ...]:
    """Return where the tiles of a side of ``size`` pixels begin.

    Tiles do not overlap, but for the last: a remainder of at least half a tile gets a tile that is shifted
    inwards to end with the image. A smaller remainder is left out; so is an image smaller than a tile.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, got {tile}")
    starts = list(range(0, size - tile + 1, tile))
    if starts and 2 * (size % tile) >= tile:
        starts.append(size - tile)
    return tuple(starts)


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """Return where windows begin that cover ``length``; the last is moved back to end at the end."""
    if length <= window:
        return [0]
    return [*range(0, length - window, window - overlap), length - window]


def blend_weights(window: int, overlap: int) -> npt.NDArray[np.float32]:
    """Return the weight of a window's rows (or columns): 1 in the middle, falling over the overlap."""
    inside = np.minimum(np.arange(1, window + 1), np.arange(window, 0, -1))
    return (np.minimum(inside, overlap + 1) / (overlap + 1)).astype(np.float32)
