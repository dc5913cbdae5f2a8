"""Features of a job as a Cloud Optimized GeoTIFF, which other readers decode by its scale and offset."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.embed.job import Job
from rsbackbones.embed.store import open_store, provenance
from rsbackbones.files.atomic import atomic_path

# The side of a block: all bands of a block are read together.
_BLOCK = 64
# Overviews halve the sides until they are no larger than this.
_SMALLEST = 256


def write_cog(job: Job, path: Path) -> None:
    """Write the store of a finished job as a GeoTIFF with overviews, complete or not at all.

    An overview holds means: of integers that are decoded by scale and offset, the mean of the integers is
    that of the features.

    Raises:
        ValueError: what was written is no valid COG.
    """
    import rasterio
    from rasterio.windows import Window
    from rio_cogeo.cogeo import cog_translate, cog_validate

    grid, quantization = job.grid, job.quantization
    data = open_store(job.objects.place, decode=False)["embeddings"]
    nodata = quantization.fill
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": str(quantization.dtype), "count": job.dim, "height": grid.height,
        "width": grid.width, "crs": grid.crs, "transform": grid.transform, "nodata": nodata, "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK, "interleave": "pixel", "compress": "zstd",
        "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    side = max(grid.height, grid.width)
    levels = max(0, int(np.ceil(np.log2(side / _SMALLEST))))
    folder = job.records.local
    assert folder is not None
    with atomic_path(path, within=folder) as part:
        plain = part.with_suffix(".plain.tif")
        try:
            with rasterio.Env(GDAL_CACHEMAX=job.cache_bytes), rasterio.open(plain, "w", **profile) as raster:
                raster.update_tags(rsbackbones=json.dumps(provenance(job)))
                raster.descriptions = tuple(f"{job.stream}_{i:04d}" for i in range(job.dim))
                if quantization.scale:
                    raster.scales, raster.offsets = quantization.scale, quantization.offset
                for block in job.blocks:
                    window = Window(block.left, block.top, block.shape[1], block.shape[0])
                    here = data[:, block.top : block.bottom, block.left : block.right]
                    raster.write(here.compute(scheduler="synchronous").values, window=window)
            with rasterio.Env(GDAL_CACHEMAX=job.cache_bytes):
                cog_translate(
                    plain, part, {k: v for k, v in profile.items() if k not in ("height", "width", "count")},
                    nodata=nodata, in_memory=False, quiet=True, overview_level=levels,
                    overview_resampling="average", resampling="nearest", forward_band_tags=True,
                    use_cog_driver=False,
                )  # fmt: skip
                valid, errors, _ = cog_validate(part, quiet=True)
        finally:
            plain.unlink(missing_ok=True)
        if not valid:
            raise ValueError(f"{path} would be no valid COG: {'; '.join(errors)}")
