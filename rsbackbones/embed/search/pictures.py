"""What a page shows under its heat maps: a scene, or features as colors; of a whole map and around a hit."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import Array, RasterStack
from rsbackbones.embed.lattice import Block
from rsbackbones.embed.preview import ColorBasis, principal_colors
from rsbackbones.embed.search.layer import Layer

Picture = npt.NDArray[np.uint8]
# A chip shows so many cells in both directions.
CELLS = 9
# The longest side of a map of features, in cells; of many maps less, so that all fit into memory.
_FEATURES, _FEWEST = 512, 128
# The longest side of a picture of a scene, in pixels.
_SCENE = 2048
_BANDS = ("B04", "B03", "B02")


class FeaturePictures:
    """Principal components of features as colors, which are comparable among maps.

    Args:
        layers: the maps.
    """

    def __init__(self, layers: list[Layer]) -> None:
        side = max(_FEWEST, int(_FEATURES / len(layers) ** 0.5))
        features = {layer: layer.thinned(max(1, -(-max(layer.shape) // side))) for layer in layers}
        flat = [x.reshape(-1, x.shape[-1]) for x in features.values()]
        self._basis = ColorBasis.of(np.concatenate(flat))
        self._maps = {layer: principal_colors(x, self._basis) for layer, x in features.items()}

    def whole(self, layer: Layer) -> Picture:
        """Return the picture of a map, [4, h, w]."""
        return self._maps[layer]

    def chip(self, layer: Layer, row: int, column: int) -> Picture:
        """Return that of the cells around one, [4, h, w]; transparent beyond the map."""
        around = _around(row, column)
        inside = _cut(around, *layer.shape)
        features = np.full((CELLS, CELLS, layer.dim), np.nan, np.float32)
        features[_within(inside, around)] = layer.read(inside)
        return principal_colors(features, self._basis)


class ScenePictures(AbstractContextManager["ScenePictures"]):
    """Red, green and blue of the raster that was embedded.

    Args:
        scene: a raster with the bands B04, B03 and B02 of Sentinel-2.
        layer: the map of its features.

    Raises:
        ValueError: the raster lacks the bands, or it is not the one under the map.
    """

    def __init__(self, scene: Path, layer: Layer) -> None:
        self._layer = layer
        self._stack = RasterStack([scene], ("s2",), wanted={"s2": _BANDS}, units={"s2": "rgb8"})
        try:
            if set(self._stack.bands.get("s2", ())) != set(_BANDS):
                raise ValueError(f"{scene} lacks some of the bands {', '.join(_BANDS)}, to be shown")
            self._order = [self._stack.bands["s2"].index(band) for band in _BANDS]
            self._cell = _pixels_of_cell(scene, self._stack.grid, layer)
            self._whole = self._read(Block(0, 0, *layer.shape), _SCENE)
        except BaseException:
            self._stack.close()
            raise
        seen = self._whole[:3, self._whole[3] > 0]
        self._range = np.percentile(seen, (1, 99), axis=1)[:, :, None, None] if seen.size else (0, 1)

    def whole(self, layer: Layer) -> Picture:
        """Return the picture of the map, [4, h, w]."""
        return self._colors(self._whole)

    def chip(self, layer: Layer, row: int, column: int) -> Picture:
        """Return that of the cells around one, [4, h, w]; transparent beyond the map."""
        return self._colors(self._read(_around(row, column), CELLS * self._cell))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _read(self, cells: Block, most: int) -> Array:
        """Return bands and validity of a block of cells, [4, h, w], at most so many pixels in each direction;
        zeros beyond the raster.
        """
        pixels = Block(*(n * self._cell for n in cells))
        inside = _cut(pixels, self._stack.height, self._stack.width)
        factor = min(1.0, most / max(pixels.shape))
        shape = [max(1, round(n * factor)) for n in inside.shape]
        height, width = (max(1, round(n * factor)) for n in pixels.shape)
        made = np.zeros((4, height, width), np.float32)
        arrays, valid = self._stack.read((inside.top, inside.left, *inside.shape), (shape[0], shape[1]))
        top, left = (round((a - b) * factor) for a, b in zip(inside[:2], pixels[:2], strict=True))
        part = made[:, top : top + shape[0], left : left + shape[1]]
        part[:] = np.concatenate((arrays["s2"][self._order], valid[None]))[
            :, : part.shape[1], : part.shape[2]
        ]
        return made

    def _colors(self, bands: Array) -> Picture:
        low, high = self._range
        color = np.clip((bands[:3] - low) / np.maximum(high - low, 1e-6), 0, 1) * 255
        return np.concatenate((color, bands[3:] * 255)).astype(np.uint8)


def pictures(scene: Path | None, layers: list[Layer]) -> AbstractContextManager[Any]:
    """Return pictures of a scene, or without one those of features, of some maps.

    Raises:
        ValueError: there are several maps, and one scene; or as :class:`ScenePictures`.
    """
    if scene is None:
        return nullcontext(FeaturePictures(layers))
    check_one_map(scene, layers)
    return ScenePictures(scene, layers[0])


def check_one_map(scene: Path, layers: list[Layer]) -> None:
    """Refuse a scene of several maps.

    Raises:
        ValueError: there are several.
    """
    if len(layers) > 1:
        raise ValueError(
            f"{scene} is the scene of one map, and {len(layers)} are searched; choose a group (--group) and "
            "a date (--date), or leave out the scene"
        )


def _pixels_of_cell(scene: Path, grid: Grid, layer: Layer) -> int:
    """Return how many pixels a cell has in each direction."""
    import rasterio

    t, under = grid.transform, Grid.of_geobox(layer.geobox)
    cell: int = round(under.transform.a / t.a)
    pixels = Grid(
        layer.shape[0] * cell, layer.shape[1] * cell, grid.crs, rasterio.Affine(t.a, t.b, t.c, t.d, t.e, t.f)
    )
    if grid.points or cell < 1 or not under.covers_same(pixels):
        raise ValueError(f"{scene} does not lie under the map as the raster that was embedded; show that one")
    return cell


def _around(row: int, column: int) -> Block:
    top, left = row - CELLS // 2, column - CELLS // 2
    return Block(top, left, top + CELLS, left + CELLS)


def _cut(block: Block, height: int, width: int) -> Block:
    top, left, bottom, right = block
    return Block(max(top, 0), max(left, 0), min(bottom, height), min(right, width))


def _within(inside: Block, around: Block) -> tuple[slice, slice]:
    """Return where the part of a block lies in it."""
    top, left = inside.top - around.top, inside.left - around.left
    return slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])
