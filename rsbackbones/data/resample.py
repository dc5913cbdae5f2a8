"""Rasters of several pixel sizes on the finest of their grids, by GDAL's warper as they are read."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import RasterPath, raster_name

RESAMPLING = ("nearest", "bilinear", "cubic")


def finest_grid(grids: Sequence[Grid]) -> Grid:
    """Return the grid with the smallest pixels; of several the first.

    Raises:
        ValueError: a raster is not placed by a CRS and a transform.
    """
    from rasterio.warp import transform_bounds

    if all(grids[0].same(grid) for grid in grids):
        return grids[0]
    sizes = []
    for grid in grids:
        if grid.points or grid.crs is None:
            raise ValueError(
                f"a raster ({grid}) is not placed by a CRS and a transform, and cannot be resampled; rectify "
                "it first: gdalwarp -tps -t_srs EPSG:... IN.tif OUT.tif"
            )
        size = grid.pixel**2
        if grid.crs != grids[0].crs:
            corners = [grid.position(x * grid.width, y * grid.height) for x in (0, 1) for y in (0, 1)]
            xs, ys = zip(*corners, strict=True)
            bounds = min(xs), min(ys), max(xs), max(ys)
            west, south, east, north = transform_bounds(grid.crs, grids[0].crs, *bounds)
            size = (east - west) * (north - south) / (grid.width * grid.height)
        sizes.append(size)
    # Sizes that differ by rounding are one: the first of them.
    return next(grid for grid, size in zip(grids, sizes, strict=True) if size < min(sizes) * (1 + 1e-6))


def describe_resampling(method: str | None, grid: Grid, coarse: Mapping[RasterPath, Grid]) -> str:
    """Return which files are resampled onto a grid, for the result; empty if none is."""
    if not coarse:
        return ""
    files = ", ".join(f"{raster_name(path)} (pixels of {other.pixel:g})" for path, other in coarse.items())
    return f"{method} onto pixels of {grid.pixel:g}: {files}"


def resampled(
    raster: Any, grid: Grid, method: str, nodata: float | None, *, alpha: bool
) -> AbstractContextManager[Any]:
    """Return a raster as it reads on another grid; pixels beyond it, or of which it has none, are masked.

    Args:
        raster: an open raster.
        grid: to read it on.
        method: one of ``RESAMPLING``.
        nodata: the value of its pixels without data, where it does not state one.
        alpha: an alpha band of the raster is its mask.
    """
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    missing = raster.nodata if raster.nodata is not None else nodata
    if missing is None and np.dtype(raster.dtypes[0]).kind == "f":
        missing = float("nan")
    options: dict[str, Any] = {"src_nodata": missing, "nodata": missing}
    if missing is None and not alpha:
        options = {"add_alpha": True}
    warped: AbstractContextManager[Any] = WarpedVRT(
        raster,
        crs=grid.crs,
        transform=grid.transform,
        width=grid.width,
        height=grid.height,
        resampling=Resampling[method],
        **options,
    )
    return warped
