"""``dates=`` and ``valid=`` as users have them: tensors, numpy arrays, lists, ``datetime64``, timestamps."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rsbackbones.arrays import to_mask


class Array(Protocol):
    """What numpy converts: its own arrays, and those of pandas and xarray."""

    def __array__(self) -> Any:
        """Return a numpy array."""


Days = Tensor | Array | Sequence[Any]
Dates = Mapping[str, Days] | Days
Mask = Tensor | Array | Sequence[Any]
Masks = Mapping[str, Mask] | Mask
_EXAMPLE = "[['2024-03-01', '2024-06-01']], datetime64, timestamps, or days since 1970-01-01"


def masks_by_modality(
    given: Masks | None, modalities: Sequence[str], device: torch.device | None = None
) -> dict[str, Tensor]:
    """Return masks as booleans by modality, on ``device``; a bare one is of the only modality.

    Their shapes are not checked: [B, T] for images, [B, H, W] or [B, T, H, W] for pixels.

    Raises:
        ValueError: a bare mask for several modalities, or one that is no array of booleans
            (:func:`rsbackbones.arrays.to_mask`).
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if len(modalities) > 1:
            raise ValueError(
                f"valid must be a mapping by modality, valid={{{modalities[0]!r}: mask}}, got "
                f"{type(given).__name__}"
            )
        given = {modalities[0]: given}
    return {m: to_mask(mask, f"valid[{m!r}]").to(device) for m, mask in given.items()}


def dates_by_modality(given: Dates | None, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return dates as days by modality, [B, T] each, on the device of ``images``; bare ones are of all.

    Raises:
        ValueError: they are no dates, one is missing (``NaT``), the images are no series, or the dates do not
            have their [B, T].
    """
    if given is None:
        return {}
    by_modality = given if isinstance(given, Mapping) else dict.fromkeys(images, given)
    if unknown := [m for m in by_modality if m not in images]:
        raise ValueError(f"dates of {', '.join(unknown)}: no such modality among {', '.join(images)}")
    found = {m: as_days(days).to(images[m].device) for m, days in by_modality.items()}
    for m, days in found.items():
        shape = list(images[m].shape)
        if len(shape) != 5 or list(days.shape) != shape[:2]:
            raise ValueError(
                f"dates must be [B, T] = {shape[:2]} for a series [B, T, C, H, W], got {list(days.shape)} "
                f"for {m} {shape}; series of different T have dates by modality, {{{m!r}: ...}}"
            )
        if days.is_floating_point() or days.dtype == torch.bool:
            raise ValueError(f"dates must be whole days since 1970-01-01, got dtype {days.dtype}")
    return found


def as_days(given: Days) -> Tensor:
    """Return dates as days since 1970-01-01, integers.

    Raises:
        ValueError: they are no dates, or one is missing (``NaT``).
    """
    if isinstance(given, Tensor):
        return given
    import numpy as np

    try:
        dates = np.asarray(given)
        if dates.dtype.kind in "OUM":
            dates = dates.astype("datetime64[D]")
    except (ValueError, TypeError) as error:
        raise ValueError(f"dates must be [B, T], such as {_EXAMPLE}: {error}") from error
    if dates.dtype.kind == "M":
        if np.isnat(dates).any():
            raise ValueError(
                "dates has a missing date (NaT); give the image any date, and mark it missing with "
                "valid={modality: [B, T] booleans}"
            )
        dates = dates.astype(np.int64)
    if dates.dtype.kind not in "iu":
        raise ValueError(f"dates must be [B, T], such as {_EXAMPLE}, got {_kind(given, dates)}")
    return torch.from_numpy(dates.astype(np.int64))


def _kind(given: Any, array: Any) -> str:
    return f"{type(given).__name__} of {array.dtype} {list(array.shape)}"
