"""Rasters on one grid as a scene, with the masks over it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rsbackbones.data.class_masks import ClassMaskReader, ClassMasks
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import RasterPath
from rsbackbones.data.rasters import RasterStack
from rsbackbones.embed.inputs import open_model_rasters, sensors_of
from rsbackbones.embed.pixels import Pixels
from rsbackbones.models.backbone import Backbone


class RasterScene:
    """A :class:`rsbackbones.embed.pixels.Scene` of a stack of rasters and its masks."""

    def __init__(self, stack: RasterStack, masks: ClassMaskReader) -> None:
        self._stack, self._masks = stack, masks
        self.name = str(stack.paths[0])
        self.grid, self.bands, self.ignored = stack.grid, stack.bands, stack.ignored
        self.stated_units, self.resampling = stack.stated_units, stack.resampling

    def read(self, window: tuple[int, int, int, int]) -> Pixels:
        """Read a window (row, column, height, width)."""
        arrays, valid = self._stack.read(window)
        return Pixels(arrays, valid, self._masks.read(window))


@contextmanager
def open_raster_scene(
    model: Backbone,
    paths: Sequence[RasterPath],
    *,
    names: Sequence[Sequence[str] | None] | None,
    units: Mapping[str, str] | None,
    nodata: float | None,
    resample: str | None,
    mask: ClassMasks | None,
    grid: Grid | None = None,
) -> Iterator[RasterScene]:
    """Open rasters as :func:`rsbackbones.embed.inputs.open_model_rasters` does, and their masks."""
    with (
        open_model_rasters(
            model, paths, names=names, units=units, nodata=nodata, resample=resample, mask=mask, grid=grid
        ) as stack,
        ClassMaskReader(stack, mask or {}, sensors_of(model), names=names) as masks,
    ):
        yield RasterScene(stack, masks)
