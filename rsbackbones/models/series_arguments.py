"""``dates=`` and ``valid=`` as users have them: tensors, numpy arrays, lists, ``datetime64``, timestamps."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Array(Protocol):
    """What numpy converts: its own arrays, and those of pandas and xarray."""

    def __array__(self) -> Any:
        """Return a numpy array."""


Dates = Tensor | Array | Sequence[Any]
Mask = Tensor | Array | Sequence[Any]
Masks = Mapping[str, Mask] | Mask
_EXAMPLE = "[['2024-03-01', '2024-06-01']], datetime64, timestamps, or days since 1970-01-01"


def masks_by_modality(
    given: Masks | None, modalities: Sequence[str], device: torch.device | None = None
) -> dict[str, Tensor]:
    """Return masks as tensors by modality, new ones on ``device``; a bare one is of the only modality.

    Raises:
        ValueError: a bare mask for several modalities, or one that is no array of booleans.
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
    return {m: x if isinstance(x, Tensor) else _as_mask(x, m).to(device) for m, x in given.items()}


def _as_mask(given: Mask, modality: str) -> Tensor:
    import numpy as np

    try:
        mask = np.asarray(given)
    except ValueError:
        mask = np.asarray(None)
    if mask.dtype != bool:
        raise ValueError(
            f"valid[{modality!r}] must be booleans, False for missing images, got {_kind(given, mask)}"
        )
    return torch.from_numpy(np.ascontiguousarray(mask))


def as_days(given: Dates) -> Tensor:
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
