"""Figures as PNG files, and what a satellite image looks like in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.files.atomic import atomic_write

# Red, green and blue: of Sentinel-2 and HLS, Landsat, SuperDove.
_COLORS = (("B04", "B03", "B02"), ("B4", "B3", "B2"), ("red", "green", "blue"))


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of a size in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # The object itself rather than pyplot: no global state, no display, whatever the user has set up.
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'rsbackbones[eval]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_png(figure: Any, path: str | Path) -> None:
    """Write a figure, whole or not at all."""
    with atomic_write(Path(path).expanduser()) as file:
        figure.savefig(file, dpi=110, format="png")


def false_colors(image: npt.NDArray[Any], bands: Sequence[str]) -> npt.NDArray[Any]:
    """[C, H, W] to [H, W, 3]: true color, or VV, VH and their difference, else the first band in gray."""
    colors = next((names for names in _COLORS if all(band in bands for band in names)), None)
    if colors is not None:
        chosen = image[[bands.index(band) for band in colors]]
    elif all(band in bands for band in ("VV", "VH")):
        vv, vh = image[bands.index("VV")], image[bands.index("VH")]
        chosen = np.stack([vv, vh, vv - vh])
    else:
        chosen = np.repeat(image[:1], 3, axis=0)
    return np.moveaxis(chosen, 0, -1)


def stretched(picture: npt.NDArray[Any], like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Stretch [H, W, 3] between the 2nd and 98th percentiles of ``like``, to 0 ... 1; NaN is gray."""
    low, high = np.nanpercentile(like.reshape(-1, 3), (2, 98), axis=0)
    scaled = np.clip((picture - low) / np.maximum(high - low, 1e-6), 0, 1)
    shown: npt.NDArray[Any] = np.nan_to_num(scaled, nan=0.5)
    return shown
