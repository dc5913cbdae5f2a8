"""Whether Sentinel-2 values carry the offset of 1000 DN that products have since 2022."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.value_check import CLEAR, DARK, ProductWarning

Array = npt.NDArray[Any]
Offset = Literal["detect", "none", "subtract"]


def carries_offset(images: Iterable[Array]) -> bool:
    """Tell from some images [C, H, W] in DN whether they carry the offset of 1000.

    Raises:
        ValueError: it cannot be told.
    """
    darkest = []
    for image in images:
        held = image[image != 0]  # zero is no data, with or without the offset
        if held.size:
            darkest.append(float(np.percentile(held, 1)))
    without = sum(value < DARK for value in darkest)
    with_offset = sum(DARK <= value < CLEAR for value in darkest)
    if darkest and without >= 0.5 * len(darkest):
        return False
    if darkest and with_offset >= 0.5 * len(darkest) and without <= 0.05 * len(darkest):
        return True
    raise ValueError(
        f"cannot tell whether the Sentinel-2 values carry the offset of 1000 DN: the darkest percent of "
        f"{len(darkest)} images lies below {DARK} in {without} and between {DARK} and {CLEAR} in "
        f"{with_offset}. Say offset='none' or offset='subtract' (rsbackbones pack: --offset)"
    )


def has_offset(baseline: str) -> bool:
    """Tell whether products of a processing baseline, such as ``04.00``, have the offset."""
    major = baseline.strip().lstrip("Nn").partition(".")[0]
    return major.isdecimal() and int(major[:2]) >= 4


def warn_of_baseline(tags: Mapping[str, str]) -> None:
    """Warn of a raster whose tags name a processing baseline with the offset: it may be subtracted since.

    The tags are those of GDAL's driver for Sentinel-2, which copies of its rasters keep, and of STAC.
    """
    named = {name: text for name, text in tags.items() if name.upper().endswith("PROCESSING_BASELINE")}
    for name, baseline in named.items():
        if has_offset(baseline):
            warnings.warn(
                f"the tag {name}={baseline} is of products with an offset of 1000. Name the unit: "
                "--units s2=dn_baseline_0400 (units={'s2': 'dn_baseline_0400'}), or s2=dn if the offset has "
                "been subtracted",
                ProductWarning,
                stacklevel=4,
            )


def subtract_offset(image: Array) -> Array:
    """Return the image less 1000; unsigned values become int32, as reflectances can be negative."""
    signed: Array = image.astype(np.int32) if image.dtype.kind == "u" else image
    return np.subtract(signed, 1000, dtype=signed.dtype)
