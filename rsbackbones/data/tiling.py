"""A large image as tiles."""


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
