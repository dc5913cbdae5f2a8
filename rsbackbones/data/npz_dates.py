"""Dates of the images in a .npz file, and the selection of some."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.npz_archive import NpzArchive

Times = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def read_times(
    archive: NpzArchive, arrays: Mapping[str, str], lengths: Mapping[str, tuple[int, int]]
) -> dict[str, Times]:
    """Return the dates by sensor, datetime64 of days [n, T].

    Args:
        archive: the file.
        arrays: by sensor the name of its array of ISO dates, [T] or [n, T].
        lengths: by sensor n and T.

    Raises:
        ValueError: an array holds no dates, or not as many as there are images.
    """
    times: dict[str, Times] = {}
    for sensor, name in arrays.items():
        try:
            days = archive.read(name).astype("datetime64[D]")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{archive.path}: {name} holds no ISO dates such as 2020-06-04: {error}"
            ) from error
        places, dates = lengths[sensor]
        if days.shape not in ((dates,), (places, dates)):
            raise ValueError(
                f"{archive.path}: {name} has the shape {list(days.shape)}, expected [{dates}] or "
                f"[{places}, {dates}]"
            )
        times[sensor] = np.broadcast_to(days, (places, dates))
    return times


def find_kept(path: Path, keep: tuple[str, ...], times: Times) -> Ints:
    """Return the positions of the dates to keep among those of every place, [n, K].

    Args:
        path: the .npz file, for the errors.
        keep: ISO dates; none for all.
        times: datetime64 of days [n, T].

    Raises:
        ValueError: not dates, one of them twice, or a place has not each of them once.
    """
    if not keep:
        return np.broadcast_to(np.arange(times.shape[1]), times.shape)
    try:
        days = np.array(keep, "datetime64[D]")
    except ValueError as error:
        raise ValueError(f"{path}: keep holds ISO dates such as 2020-06-04: {error}") from error
    if np.isnat(days).any() or len(np.unique(days)) < len(days):
        raise ValueError(f"{path}: keep names a date twice, or one that is none: {', '.join(keep)}")
    hits = times[:, :, None] == days  # [n, T, K]
    for number, what in ((0, "lacks"), (2, "holds more than once")):
        if (wrong := hits.sum(1).clip(max=2) == number).any():
            place = int(wrong.any(1).argmax())
            named = ", ".join(map(str, days[wrong[place]]))
            raise ValueError(f"{path}: keep names {named}, which place {place} {what}")
    positions: Ints = hits.argmax(1)
    return positions
