"""A feature map as a GeoTIFF."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import Array
from rsbackbones.files.atomic import atomic_path

# Rows of the feature map are handed to the GeoTIFF in strips of about this many bytes.
_STRIP_BYTES = 64 * 2**20


def write_map(
    output: Path,
    features: Array,
    grid: Grid,
    stride: int,
    tags: Mapping[str, Any],
    *,
    within: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write features [h, w, D] as a GeoTIFF of D bands, complete or not at all.

    Args:
        output: the file.
        features: of cells of ``stride`` x ``stride`` pixels; NaN where there are none.
        grid: that of the pixels.
        stride: the side of a cell in pixels.
        tags: kept with the file; ``stream`` names the bands.
        within: the folder of the temporary file.
        check: called before the file takes its name; an error leaves none.
    """
    import rasterio
    from rasterio.windows import Window

    from rsbackbones import __version__

    rows, columns, dim = features.shape
    profile = grid.profile(stride, rows, columns) | {
        "driver": "GTiff", "dtype": "float32", "count": dim,
        "nodata": float("nan"), "compress": "deflate", "predictor": 3, "zlevel": 1,
        "blockysize": 16, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    strip = max(16, _STRIP_BYTES // (columns * dim * 4) // 16 * 16)
    with atomic_path(output, within=within) as part:
        with rasterio.open(part, "w", **profile) as raster:
            raster.update_tags(rsbackbones=__version__, **{k: str(v) for k, v in tags.items()})
            raster.descriptions = tuple(f"{tags['stream']}_{i:04d}" for i in range(dim))
            for row in range(0, rows, strip):
                block = np.moveaxis(features[row : row + strip], -1, 0)
                raster.write(block, window=Window(0, row, columns, block.shape[1]))
        check()
