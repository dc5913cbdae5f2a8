"""A preview of a feature map: its first three principal components as colors."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.files.atomic import atomic_path

# Features that differ by less than this share of the largest are equal but for rounding.
ROUNDING = 1e-5


def principal_colors(features: Array) -> npt.NDArray[np.uint8]:
    """Return the first three principal components of a feature map [h, w, D] as RGBA, [4, h, w].

    Each component is stretched between its 2nd and 98th percentile; NaN is transparent. A component that
    varies by no more than rounding is black.
    """
    rows, columns, dim = features.shape
    flat = features.reshape(-1, dim)
    step = max(1, len(flat) // 20_000)
    sample = np.array(flat[::step])
    sample = sample[np.isfinite(sample).all(axis=1)].astype(np.float64)
    image = np.zeros((4, rows * columns), np.uint8)
    if len(sample):
        mean = sample.mean(axis=0)
        _, vectors = np.linalg.eigh((sample - mean).T @ (sample - mean))
        axes = vectors[:, ::-1][:, :3].astype(np.float32)
        # The sign of an eigenvector is arbitrary: fix it, so that a preview is reproducible.
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
        noise = ROUNDING * np.abs(sample).max()
        low, high = np.percentile((sample - mean) @ axes, (2, 98), axis=0)
        for start in range(0, len(flat), 65_536):
            block = (flat[start : start + 65_536] - mean) @ axes
            seen = np.isfinite(block).all(axis=1)
            scaled = np.clip(
                (np.nan_to_num(block) - low) / np.where(high - low > noise, high - low, np.inf), 0, 1
            )
            image[:3, start : start + len(block)] = (scaled * 255 * seen[:, None]).T
            image[3, start : start + len(block)] = seen * 255
    return image.reshape(4, rows, columns)


def write_preview(path: Path, features: Array) -> None:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    image = principal_colors(features)
    factor = max(1, round(512 / max(image.shape[1:])))
    image = image.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width = image.shape
    with atomic_path(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture, not a map
        with rasterio.open(
            part, "w", driver="PNG", dtype="uint8", count=count, height=height, width=width
        ) as raster:
            raster.write(image)
