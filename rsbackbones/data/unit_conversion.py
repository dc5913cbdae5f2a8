"""Images whose files state their unit, in the one unit of their data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.preprocess.conversion import dn_factors
from rsbackbones.sensors import get_sensor

Array = npt.NDArray[Any]


def convert_unit(x: Array, bands: Sequence[str], sensor: str, unit: str, wanted: str) -> Array:
    """Convert float32 values [C, H, W] of reflectances between two units; others stay as they are.

    Args:
        x: the values; kelvin of thermal bands, and Collection 2 numbers of ``landsat_c2``.
        bands: in the order of ``x``.
        sensor: of the bands.
        unit: of ``x``, as ``create_preprocess`` names it.
        wanted: of the result.

    Raises:
        ValueError: one of two different units is none of reflectances.
    """
    if unit == wanted or get_sensor(sensor).kind == "radar":
        return x
    try:
        (scale, offset), (other, start) = (
            np.array(dn_factors(bands, name, get_sensor(sensor)), np.float32).T[..., None, None]
            for name in (unit, wanted)
        )
    except KeyError as error:
        raise ValueError(f"{sensor}: values in {unit!r} cannot be brought to {wanted!r}") from error
    converted: Array = (x * scale + offset - start) / other
    return converted
