"""Tiles that together are one scene: where they lie on its grid, and which of them a pixel is of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import RasterPath, without_query
from rsbackbones.embed.pixels import Pixels, Scene
from rsbackbones.embed.sources.source import Window


@dataclass(frozen=True)
class Tile:
    """Rasters of one place, the names of their bands from the user, and where they lie in the mosaic."""

    paths: tuple[RasterPath, ...]
    names: tuple[Sequence[str] | None, ...]
    place: Window

    @property
    def name(self) -> str:
        """What messages and records call it."""
        return ";".join(without_query(str(path)) for path in self.paths)


def place_tiles(
    groups: Sequence[Sequence[tuple[RasterPath, Sequence[str] | None, Grid]]], resample: str | None
) -> tuple[tuple[Tile, ...], Grid]:
    """Return tiles, and the grid of all: that of the finest pixels, around all tiles."""
    from rasterio import Affine
    from rasterio.warp import transform_bounds

    grids = [min((grid for _, _, grid in group), key=lambda grid: grid.pixel) for group in groups]
    first = grids[0]
    if len(groups) == 1:
        whole = (0, 0, first.height, first.width)
        tile = Tile(tuple(p for p, _, _ in groups[0]), tuple(n for _, n, _ in groups[0]), whole)
        return (tile,), first
    if first.crs is None:
        raise ValueError(
            f"{groups[0][0][0]} has no CRS, so that it cannot be a tile of a mosaic; embed it alone"
        )
    places = []
    for group, grid in zip(groups, grids, strict=True):
        aligned = first.aligned(grid)
        if not aligned and resample is None:
            raise ValueError(
                f"{groups[0][0][0]} ({first}) and {group[0][0]} ({grid}) are tiles of two grids; have them "
                "resampled onto the first: --resample bilinear (resample='bilinear')"
            )
        corners = [grid.position(0, 0), grid.position(grid.width, grid.height)]
        bounds = (corners[0][0], corners[1][1], corners[1][0], corners[0][1])
        if grid.crs != first.crs:
            bounds = transform_bounds(grid.crs, first.crs, *bounds)
        t = first.transform
        left, right = ((x - t.c) / t.a for x in (bounds[0], bounds[2]))
        top, bottom = ((y - t.f) / t.e for y in (bounds[3], bounds[1]))
        edge = round if aligned else np.floor
        far = round if aligned else np.ceil
        places.append((int(edge(top)), int(edge(left)), int(far(bottom)), int(far(right))))
    tops, lefts, bottoms, rights = zip(*places, strict=True)
    top, left = min(tops), min(lefts)
    t = first.transform
    transform = Affine(t.a, t.b, t.c + left * t.a, t.d, t.e, t.f + top * t.e)
    grid = Grid(max(bottoms) - top, max(rights) - left, first.crs, transform)
    tiles = tuple(
        Tile(tuple(p for p, _, _ in group), tuple(n for _, n, _ in group),
              (place[0] - top, place[1] - left, place[2] - place[0], place[3] - place[1]))
        for group, place in zip(groups, places, strict=True)
    )  # fmt: skip
    return tiles, grid


class Mosaic:
    """Scenes on one grid as one; a pixel is that of the first scene that has data there."""

    def __init__(self, scenes: Sequence[Scene], places: Sequence[Window], grid: Grid) -> None:
        self._scenes, self._places = scenes, places
        first = scenes[0]
        self.name, self.grid = f"{first.name} and other tiles", grid
        self.bands, self.ignored, self.stated_units = first.bands, first.ignored, first.stated_units
        for scene in scenes:
            check_alike(first, scene)

    def read(self, window: Window) -> Pixels:
        """Read a window (row, column, height, width)."""
        shape = window[2:]
        made = Pixels({m: np.zeros((len(b), *shape), np.float32) for m, b in self.bands.items()},
                      np.zeros(shape, bool), {})  # fmt: skip
        for scene, place in zip(self._scenes, self._places, strict=True):
            if made.valid.all():
                break
            if not intersect(place, window):
                continue
            arrays, valid, counts = scene.read(window)
            new = valid & ~made.valid
            for m, x in arrays.items():
                made.arrays[m][:, new] = x[:, new]
            for m, counted in counts.items():
                made.counts.setdefault(m, np.zeros(shape, bool))[new] = counted[new]
            made.valid[new] = True
        return made


def check_alike(first: Scene, scene: Scene) -> None:
    if (scene.bands, scene.stated_units) != (first.bands, first.stated_units):
        raise ValueError(
            f"{first.name} and {scene.name} are tiles of one mosaic, and have other bands or units: "
            f"{dict(first.bands)} {dict(first.stated_units)}, {dict(scene.bands)} "
            f"{dict(scene.stated_units)}; embed them one by one"
        )


def intersect(a: Window, b: Window) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
