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

from rsbackbones.data.rasters import Array, RasterStack, open_raster, same_grid
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


def masked_names(names: Sequence[str] | None, masks: ClassMasks | None) -> list[str] | None:
    """Return names of bands as :class:`RasterStack` takes them: those of masks are skipped, ``-``."""
    bands = {key.rpartition(":")[2].lower() for key in masks or ()}
    return None if names is None else ["-" if name.strip().lower() in bands else name for name in names]


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
        from rasterio.errors import RasterioIOError
        from rasterio.windows import Window

        where = None if window is None else Window(window[1], window[0], window[3], window[2])
        found: dict[str, Array] = {}
        for m, layers in self._layers.items():
            for layer in layers:
                try:
                    values = layer.raster.read(layer.index, window=where, out_shape=out_shape, masked=True)
                except RasterioIOError as error:
                    raise ValueError(
                        f"cannot read {layer.raster.name}: {error.__cause__ or error}"
                    ) from error
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
        described = []
        for i, path in enumerate(stack.paths):
            raster = opening.enter_context(open_raster(path))
            bands = [name or "" for name in ((names[i] if names else None) or raster.descriptions)]
            found = [j for j, name in enumerate(bands, start=1) if name.strip().lower() == source.lower()]
            if len(found) > 1:
                raise ValueError(f"{path}: the mask {source!r} is the name of {len(found)} bands")
            if found:
                return raster, found[0], stack.modalities_of(path)
            described += [name for name in bands if name]
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
        with open_raster(stack.paths[0]) as first:
            if not same_grid(first, raster):
                raster = self._resampled(opening, stack, raster)
        return raster, 1, optical or list(stack.bands)

    def _resampled(self, opening: ExitStack, stack: RasterStack, raster: Any) -> Any:
        """Return a view of a raster on the grid of the stack; pixels beyond it have no value."""
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT

        if raster.crs is None or stack.crs is None:
            raise ValueError(
                f"mask {raster.name} has another grid than {stack.paths[0]}, and one of them has no CRS to "
                "resample it by; bring it to that grid first"
            )
        warnings.warn(
            f"mask {raster.name} is brought to the grid of {stack.paths[0]} by nearest neighbor: from pixels "
            f"of {abs(raster.transform.a):.6g} ({raster.crs}) to {abs(stack.transform.a):.6g} ({stack.crs})",
            stacklevel=5,
        )
        options = {} if raster.nodata is not None else {"add_alpha": True}
        return opening.enter_context(
            WarpedVRT(
                raster, crs=stack.crs, transform=stack.transform, height=stack.height, width=stack.width,
                resampling=Resampling.nearest, **options,
            )
        )  # fmt: skip
