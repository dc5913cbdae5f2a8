"""A preview of a feature map: its first three principal components as colors."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array, open_raster
from rsbackbones.files.atomic import atomic_write

# A text in the pictures that are written here, which may be replaced.
_OURS = {"Software": "rsbackbones"}


def principal_colors(features: Array) -> npt.NDArray[np.uint8]:
    """Return the first three principal components of a feature map [h, w, D] as RGBA, [4, h, w].

    Each component is stretched between its 2nd and 98th percentile; NaN is transparent.
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
        low, high = np.percentile((sample - mean) @ axes, (2, 98), axis=0)
        for start in range(0, len(flat), 65_536):
            block = (flat[start : start + 65_536] - mean) @ axes
            seen = np.isfinite(block).all(axis=1)
            scaled = np.clip((np.nan_to_num(block) - low) / np.maximum(high - low, 1e-12), 0, 1)
            image[:3, start : start + len(block)] = (scaled * 255 * seen[:, None]).T
            image[3, start : start + len(block)] = seen * 255
    return image.reshape(4, rows, columns)


def preview_path(output: Path) -> Path:
    """Return where the preview of a feature map goes."""
    return output.with_suffix(".png")


def check_preview(path: Path) -> None:
    """Refuse to replace a picture that is no preview.

    Raises:
        ValueError: there is one.
    """
    if not path.exists():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no georeference
        try:
            with open_raster(path) as picture:
                ours = _OURS.items() <= picture.tags().items()
        except ValueError:
            ours = False
    if not ours:
        raise ValueError(
            f"{path} is where the preview goes, and it was not written as one; move it, or choose another "
            "output"
        )


def write_preview(path: Path, features: Array, *, within: Path) -> None:
    """Write a preview, complete or not at all; ``within`` is the folder of its temporary file."""
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    image = principal_colors(features)
    factor = max(1, round(512 / max(image.shape[1:])))
    image = image.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width = image.shape
    # In memory first: GDAL does not tell that a disk was full when it closes a PNG.
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture, not a map
        with memory.open(
            driver="PNG", dtype="uint8", count=count, height=height, width=width,
            write_metadata_as_text="YES",
        ) as raster:  # fmt: skip
            raster.update_tags(**_OURS)
            raster.write(image)
        content = memory.read()
    with atomic_write(path, within=within) as file:
        file.write(content)
