"""A preview of a feature map: its first three principal components as colors."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array, open_raster
from rsbackbones.files.atomic import atomic_write

# A text in the pictures that are written here, which may be replaced.
_OURS = {"Software": "rsbackbones"}

# Features that differ by less than this share of the largest are equal but for rounding.
ROUNDING = 1e-5


@dataclass(frozen=True)
class ColorBasis:
    """What turns features into colors: ``mean`` [D], ``axes`` [D, 3], the range ``low`` to ``high`` [3].

    A component whose range is no more than ``noise`` varies by rounding only, and is black.
    """

    mean: Array
    axes: Array
    low: Array
    high: Array
    noise: float

    @staticmethod
    def of(features: Array) -> "ColorBasis | None":
        """Return the first three principal components of features [..., D]; ``None`` where all are NaN.

        Their range is between the 2nd and the 98th percentile.
        """
        flat = features.reshape(-1, features.shape[-1])
        step = max(1, len(flat) // 20_000)
        sample = np.array(flat[::step])
        sample = sample[np.isfinite(sample).all(axis=1)].astype(np.float64)
        if not len(sample):
            return None
        mean = sample.mean(axis=0)
        _, vectors = np.linalg.eigh((sample - mean).T @ (sample - mean))
        axes = vectors[:, ::-1][:, :3].astype(np.float32)
        # The sign of an eigenvector is arbitrary: fix it, so that a preview is reproducible.
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
        noise = ROUNDING * np.abs(sample).max()
        low, high = np.percentile((sample - mean) @ axes, (2, 98), axis=0)
        return ColorBasis(mean, axes, low, high, float(noise))

    @staticmethod
    def of_map(path: Path) -> "ColorBasis | None":
        """Return that of a feature map that ``embed_scene`` wrote.

        Raises:
            ValueError: the file cannot be read.
        """
        with open_raster(path) as raster:
            return ColorBasis.of(np.moveaxis(raster.read(), 0, -1))


def principal_colors(features: Array, basis: ColorBasis | None = None) -> npt.NDArray[np.uint8]:
    """Return the first three principal components of feature maps [..., h, w, D] as RGBA, [..., 4, h, w].

    All maps of one call have one basis, so that the colors of several dates can be compared, stacked as
    [T, h, w, D]. Colors of different calls cannot, unless they are given the same basis. NaN is transparent.

    Args:
        features: the maps.
        basis: that of other features, of the same D; default: ``ColorBasis.of(features)``.

    Raises:
        ValueError: the basis is of features of another size.
    """
    *leading, rows, columns, dim = features.shape
    flat = features.reshape(-1, dim)
    image = np.zeros((len(flat), 4), np.uint8)
    basis = ColorBasis.of(features) if basis is None else basis
    if basis is not None:
        if len(basis.mean) != dim:
            raise ValueError(f"the colors are of {len(basis.mean)} features, and these are {dim}")
        for start in range(0, len(flat), 65_536):
            block = (flat[start : start + 65_536] - basis.mean) @ basis.axes
            seen = np.isfinite(block).all(axis=1)
            span = np.where(basis.high - basis.low > basis.noise, basis.high - basis.low, np.inf)
            scaled = np.clip((np.nan_to_num(block) - basis.low) / span, 0, 1)
            image[start : start + len(block), :3] = scaled * 255 * seen[:, None]
            image[start : start + len(block), 3] = seen * 255
    return np.moveaxis(image.reshape(*leading, rows, columns, 4), -1, -3)


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


def write_preview(path: Path, features: Array, basis: ColorBasis | None = None, *, within: Path) -> None:
    """Write a preview, complete or not at all; ``within`` is the folder of its temporary file."""
    image = principal_colors(features, basis)
    factor = max(1, round(512 / max(image.shape[1:])))
    content = encode_png(image.repeat(factor, axis=1).repeat(factor, axis=2))
    with atomic_write(path, within=within) as file:
        file.write(content)


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return an image [C, h, w] as a PNG."""
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

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
        return bytes(memory.read())
