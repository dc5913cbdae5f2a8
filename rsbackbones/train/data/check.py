"""What every image must be before it is used: all sensors, right shapes, one grid, finite, not empty."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.train.data.source import BadSample, Sample

Array = npt.NDArray[Any]
# A season: images of two sensors further apart do not show the same place in the same state.
_MOST_DAYS_APART = 60


def checked(
    images: Mapping[str, Array],
    bands: Mapping[str, tuple[str, ...]],
    *,
    frames: int | None,
    dates: Mapping[str, Array] | None = None,
) -> Sample:
    """Return the images as a sample; float16 becomes float32, other types stay.

    Args:
        images: by sensor [C, H, W], or [T, C, H, W] where ``frames`` is given.
        bands: the sensors that there must be, and the names of their channels.
        frames: T, or ``None`` for a single date.
        dates: by sensor, days since 1970-01-01, one per frame.

    Raises:
        BadSample: a sensor is missing, an image has another shape, type or grid, holds NaN or infinity, is
            zero everywhere at a date, or the sensors' dates are more than 60 days apart.
    """
    good: dict[str, Array] = {}
    for sensor, names in bands.items():
        if sensor not in images:
            raise BadSample(f"{sensor} is missing")
        image = images[sensor]
        leading = (len(names),) if frames is None else (frames, len(names))
        if image.ndim != len(leading) + 2 or image.shape[:-2] != leading or not image.size:
            wanted = ", ".join(map(str, leading))
            raise BadSample(f"{sensor} has the shape {list(image.shape)}, expected [{wanted}, H, W]")
        if image.dtype.kind not in "iuf":
            raise BadSample(f"{sensor} has the type {image.dtype}, expected integers or floats")
        if image.dtype.kind == "f" and (bad := image.size - int(np.isfinite(image).sum())):
            raise BadSample(f"{sensor} has {bad} of {image.size} values without data (NaN or infinite)")
        if not image.reshape(frames or 1, -1).any(axis=1).all():
            raise BadSample(f"{sensor} is zero everywhere")
        good[sensor] = image.astype(np.float32) if image.dtype == np.float16 else image
    if len({image.shape[-2:] for image in good.values()}) > 1:
        sizes = ", ".join(f"{m} {x.shape[-2]} x {x.shape[-1]}" for m, x in good.items())
        raise BadSample(f"the sensors are not on one grid of pixels: {sizes}")
    if dates and len(dates) > 1 and len({len(d) for d in dates.values()}) == 1:
        apart = int(np.ptp(np.stack(list(dates.values())).astype(np.int64), axis=0).max())
        if apart > _MOST_DAYS_APART:
            raise BadSample(f"the sensors' images were taken {apart} days apart")
    return Sample(images=good, dates=dict(dates or {}))
