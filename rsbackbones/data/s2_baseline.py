"""Whether Sentinel-2 values carry the offset of 1000 DN that products have since 2022."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.value_check import CLEAR, DARK

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


def subtract_offset(image: Array) -> Array:
    """Return the image less 1000; unsigned values become int32, as reflectances can be negative."""
    signed: Array = image.astype(np.int32) if image.dtype.kind == "u" else image
    return np.subtract(signed, 1000, dtype=signed.dtype)
