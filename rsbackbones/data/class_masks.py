"""Pixels that do not count by their class, such as the clouds of a scene classification (SCL).

Needs the extra ``geo`` (rasterio).
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import raster_name
from rsbackbones.data.rasters import SKIP, Array, RasterStack, names_of_channels, open_raster, reading
from rsbackbones.data.resample import resampled
from rsbackbones.sensors import get_sensor

# By a band of the rasters or the path of another raster, optionally after "MODALITY:", the classes that do
# not count: {"SCL": (3, 8, 9, 10)}.
ClassMasks = Mapping[str, Collection[int]]


@dataclass(frozen=True)
class _Layer:
    """A band of an open raster (or a view of it on the grid), and the values that do not count."""

    raster: Any
    index: int
    classes: list[int]


def mask_bands(masks: ClassMasks | None) -> set[str]:
    """Return the names that bands of masks may have, in lower case."""
    return {key.rpartition(":")[2].strip().lower() for key in masks or ()}


def masked_names(names: Sequence[str] | None, masks: ClassMasks | None) -> list[str] | None:
    """Return names of bands as :class:`RasterStack` takes them: those of masks are skipped, ``-``."""
    bands = mask_bands(masks)
    return None if names is None else [SKIP if name.strip().lower() in bands else name for name in names]


def mask_files(masks: ClassMasks | None) -> list[Path]:
    """Return the masks that are files, not bands of the rasters."""
    names = [name for key in masks or () for name in (key, key.partition(":")[2]) if name]
    return [path for name in names if (path := Path(name).expanduser()).is_file()]


class ClassMaskReader:
    """Reads which pixels of a stack of rasters count, by modality. A context manager.

    A band of the rasters masks the sensors in its file. Another raster masks the optical sensors, or all if
    none is optical, and is resampled by nearest neighbor where it has another grid. ``s1:NAME`` names the
    modality. Pixels without a value in the mask, or beyond it, do not count.

    Raises:
        ValueError: no raster has the band and there is no such file, or a mask cannot be brought to the grid.
    """

    def __init__(
        self,
        stack: RasterStack,
        masks: ClassMasks,
        sensors: Mapping[str, str],
        *,
        names: Sequence[Sequence[str] | None] | None = None,
    ) -> None:
        self._layers: dict[str, list[_Layer]] = {}
        self._open = ExitStack()
        with ExitStack() as opening:
            for key, classes in masks.items():
                modality, colon, rest = key.partition(":")
                asked = [modality] if colon and modality in sensors else None
                source = rest if asked else key
                raster, index, found = self._find(opening, stack, source, sensors, names)
                for m in asked or found:
                    self._layers.setdefault(m, []).append(_Layer(raster, index, sorted(classes)))
            self._open = opening.pop_all()

    def read(
        self,
        window: tuple[int, int, int, int] | None = None,
        out_shape: tuple[int, int] | None = None,
    ) -> dict[str, Array]:
        """Read a window as :meth:`RasterStack.read` does; by modality [h, w], False for masked pixels."""
        from rasterio.windows import Window

        where = None if window is None else Window(window[1], window[0], window[3], window[2])
        found: dict[str, Array] = {}
        for m, layers in self._layers.items():
            for layer in layers:
                with reading(layer.raster):
                    values = layer.raster.read(layer.index, window=where, out_shape=out_shape, masked=True)
                counts = ~np.ma.getmaskarray(values) & ~np.isin(np.ma.getdata(values), layer.classes)
                found[m] = found[m] & counts if m in found else counts
        return found

    def __bool__(self) -> bool:
        """Return whether there is any mask."""
        return bool(self._layers)

    def __enter__(self) -> "ClassMaskReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _find(
        self,
        opening: ExitStack,
        stack: RasterStack,
        source: str,
        sensors: Mapping[str, str],
        names: Sequence[Sequence[str] | None] | None,
    ) -> tuple[Any, int, list[str]]:
        """Open the raster of a mask; return it, its band, and the modalities it masks."""
        described: list[str] = []
        for i, path in enumerate(stack.paths):
            raster = opening.enter_context(open_raster(path))
            bands = names_of_channels(raster, path, sensors, names[i] if names else None)
            found = [j for j, (name, _) in bands.items() if name.strip().lower() == source.strip().lower()]
            if len(found) > 1:
                raise ValueError(f"{path}: the mask {source!r} is the name of {len(found)} bands")
            if found:
                return self._on_grid(opening, stack, raster, warn=False), found[0], stack.modalities_of(path)
            described += [name for name, _ in bands.values()]
        path = Path(source).expanduser()
        if not path.is_file():
            raise ValueError(
                f"mask {source!r}: it is no file, and no band of the rasters, which have "
                f"{', '.join(dict.fromkeys(described)) or 'no names'}"
            )
        raster = opening.enter_context(open_raster(path))
        if raster.count != 1:
            raise ValueError(f"mask {path}: expected one band of classes, got {raster.count}")
        optical = [m for m in stack.bands if get_sensor(sensors[m]).kind == "optical"]
        return self._on_grid(opening, stack, raster, warn=True), 1, optical or list(stack.bands)

    def _on_grid(self, opening: ExitStack, stack: RasterStack, raster: Any, *, warn: bool) -> Any:
        """Return a raster, or a view of it on the grid of the stack; pixels beyond it have no value."""
        from rasterio.enums import ColorInterp

        grid = Grid.of(raster)
        if stack.grid.same(grid):
            return raster
        if any(one.crs is None or one.points for one in (grid, stack.grid)):
            raise ValueError(
                f"mask {raster.name} has another grid than {stack.paths[0]}, and one of them has no CRS and "
                "transform to resample it by; bring it to that grid first"
            )
        if warn:
            warnings.warn(
                f"mask {raster_name(raster.name)} is brought to the grid of {raster_name(stack.paths[0])} by "
                f"nearest neighbor: from pixels of {grid.pixel:.6g} ({grid.crs}) to {stack.grid.pixel:.6g} "
                f"({stack.crs})",
                stacklevel=5,
            )
        has_alpha = ColorInterp.alpha in raster.colorinterp
        return opening.enter_context(resampled(raster, stack.grid, "nearest", None, alpha=has_alpha))
