"""Validation of samples: all sensors, right shapes, one grid, finite, not empty."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.date_alignment import MAX_DAYS_APART, warn_of_pairs
from rsbackbones.data.source import BadSample, EmptyImage, Sample

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


def validate_sample(
    images: Mapping[str, Array],
    bands: Mapping[str, tuple[str, ...]],
    *,
    frames: int | Mapping[str, int] | None,
    dates: Mapping[str, Array] | None = None,
    valid: Mapping[str, Array] | None = None,
) -> Sample:
    """Return the images as a sample; float16 becomes float32, other types stay.

    Args:
        images: by sensor [C, H, W], or [T, C, H, W] where ``frames`` is given.
        bands: the required sensors, and the names of their channels.
        frames: T, of every sensor where they differ, or ``None`` for a single date.
        dates: by sensor, days since 1970-01-01, one per frame.
        valid: with ``frames``, by sensor [T] booleans, ``False`` where an image is missing; its pixels become
            0. Sensors absent from the mapping, or all ``True``, are complete.

    Raises:
        BadSample: a sensor is missing or has no image at any date, an image has another shape, type or grid,
            holds NaN or infinity, is zero everywhere at a date, or the sensors' dates are more than 60 days
            apart.
    """
    good: dict[str, Array] = {}
    gaps: dict[str, Array] = {}
    for sensor, names in bands.items():
        if sensor not in images:
            raise BadSample(f"{sensor} is missing")
        image = images[sensor]
        count = frames.get(sensor) if isinstance(frames, Mapping) else frames
        leading = (len(names),) if count is None else (count, len(names))
        if image.ndim != len(leading) + 2 or image.shape[:-2] != leading or not image.size:
            wanted = ", ".join(map(str, leading))
            raise BadSample(f"{sensor} has the shape {list(image.shape)}, expected [{wanted}, H, W]")
        if image.dtype.kind not in "iuf":
            raise BadSample(f"{sensor} has the type {image.dtype}, expected integers or floats")
        held = _available(sensor, valid or {}, count)
        for one in image[None] if count is None else image if held.all() else image[held]:
            if fault := find_fault(one):
                raise EmptyImage(f"{sensor} {fault}")
        if not held.all():
            gaps[sensor] = held
            image = np.where(held[:, None, None, None], image, image.dtype.type(0))
        good[sensor] = image.astype(np.float32) if image.dtype == np.float16 else image
    if len({image.shape[-2:] for image in good.values()}) > 1:
        sizes = ", ".join(f"{m} {x.shape[-2]} x {x.shape[-1]}" for m, x in good.items())
        raise BadSample(f"the sensors are not on one grid of pixels: {sizes}")
    if isinstance(frames, Mapping):  # the images of two sensors are no pairs
        return Sample(images=good, dates=dict(dates or {}), valid=gaps)
    if dates and len(dates) > 1 and len({len(d) for d in dates.values()}) == 1:
        apart = np.ptp(np.stack(list(dates.values())).astype(np.int64), axis=0)
        for held in gaps.values():
            apart = np.where(held, apart, 0)
        if apart.max() > MAX_DAYS_APART:
            raise BadSample(f"the sensors' images were taken {apart.max()} days apart")
    warn_of_pairs("a sample", dates or {}, gaps)
    return Sample(images=good, dates=dict(dates or {}), valid=gaps)


def stack_valid(sensor: str, images: Sequence[Array | None]) -> tuple[Array, Bools]:
    """Stack a sensor's images of all dates, with 0 for those that are missing or not usable.

    Args:
        sensor: its name, for the error.
        images: [C, H, W] of one shape, ``None`` where there is none. One that holds NaN or infinity, or is
            zero everywhere, is not usable.

    Returns:
        [T, C, H, W], of the type of the usable images, and which those are, [T].

    Raises:
        BadSample: none is usable.
    """
    faults = ["is missing" if image is None else find_fault(image) for image in images]
    usable = [image for image, fault in zip(images, faults, strict=True) if image is not None and not fault]
    if not usable:
        raise BadSample(f"{sensor} has no usable image at any of {len(images)} dates; the first {faults[0]}")
    held = np.array([not fault for fault in faults])
    stack = np.zeros((len(images), *usable[0].shape), np.result_type(*usable))
    stack[held] = usable
    return stack, held


def find_fault(image: Array) -> str | None:
    """Return why an image of one date is unusable, or ``None``."""
    if image.dtype.kind == "f" and (bad := image.size - int(np.isfinite(image).sum())):
        return f"has {bad} of {image.size} values without data (NaN or infinite)"
    return None if image.any() else "is zero everywhere"


def _available(sensor: str, valid: Mapping[str, Array], frames: int | None) -> Bools:
    """Return the dates at which a sensor has an image, [T] bool."""
    if sensor not in valid:
        return np.ones(frames or 1, bool)
    held = valid[sensor]
    if held.shape != (frames,) or held.dtype != np.bool_:
        raise BadSample(
            f"valid of {sensor} is {held.dtype} {list(held.shape)}, expected booleans [{frames}], "
            "and only with all dates"
        )
    if not held.any():
        raise BadSample(f"{sensor} has no usable image at any of {frames} dates")
    return held
