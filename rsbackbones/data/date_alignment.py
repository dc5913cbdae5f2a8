"""Images of a place in order of time, and the images of several sensors aligned by date."""

import warnings
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.source import BadSample

Times = npt.NDArray[Any]  # datetime64 of days or finer
Ints = npt.NDArray[np.int64]

# A season: images of two sensors further apart do not show the same place in the same state.
MAX_DAYS_APART = 60


def undated(count: int) -> Times:
    """Return dates for images in order of time without dates: those of one number go together, no others."""
    return np.datetime64("1970-01-01") + 10 * MAX_DAYS_APART * np.arange(count)


def date_order(times: Times, sensor: str) -> Ints:
    """Return the indices that put the dates of one sensor, datetime64 [T], in order.

    Raises:
        BadSample: a date is missing (NaT), or two are equal: the images cannot be ordered.
    """
    if missing := int(np.isnat(times).sum()):
        raise BadSample(f"{sensor} cannot be ordered in time: {missing} of {len(times)} dates are missing")
    order = np.argsort(times)
    ordered = times[order]
    if (equal := ordered[1:] == ordered[:-1]).any():
        raise BadSample(f"{sensor} cannot be ordered in time: two images are of {ordered[1:][equal][0]}")
    return order


def pair_dates(frames: Times, others: Times) -> Ints:
    """Match each frame to a date of another sensor, one to one, at most 60 days away.

    The matching has as many pairs as possible, of these the smallest sum of days, and no crossing pairs.

    Args:
        frames: dates, datetime64 [T] in order.
        others: dates of another sensor, datetime64 [S] in order.

    Returns:
        [T], indices into ``others``, -1 for frames without a match.
    """
    from scipy.optimize import linear_sum_assignment

    days = [times.astype("datetime64[D]").astype(np.int64) for times in (frames, others)]
    apart = np.abs(days[0][:, None] - days[1])
    near = apart <= MAX_DAYS_APART
    # A pair too far apart costs more than all near ones together: the fewest of them are taken, and undone.
    cost = np.where(near, apart, (MAX_DAYS_APART + 1) * (min(apart.shape) + 1))
    rows, columns = linear_sum_assignment(cost)
    taken = near[rows, columns]
    pairs = np.full(len(frames), -1, np.int64)
    # Crossed pairs can cost the same as straight ones; straightening never takes a pair further apart.
    pairs[rows[taken]] = np.sort(columns[taken])
    return pairs


def nearest_dates(frames: Times, others: Times, days: float = np.inf) -> Ints:
    """Match each frame to the nearest date of another sensor, not one to one.

    Args:
        frames: dates, datetime64 [T].
        others: dates of another sensor, datetime64 [S]; NaT for images that are missing.
        days: the largest distance.

    Returns:
        [T], indices into ``others`` (of two equally near dates the first), -1 for frames without a match.
    """
    if not len(others):
        return np.full(len(frames), -1, np.int64)
    apart = np.abs(frames[:, None] - others).astype("timedelta64[s]").astype(np.float64)
    apart[np.isnat(frames)[:, None] | np.isnat(others)] = np.inf
    nearest = apart.argmin(axis=1)
    near = np.take_along_axis(apart, nearest[:, None], axis=1)[:, 0] <= days * 86400
    return np.where(near, nearest, -1)


def align_dates(times: Mapping[str, Times]) -> dict[str, Ints]:
    """Return by sensor the index of its image for each frame, [T], -1 for none.

    The frames are the sorted dates of the first sensor; the other sensors are matched to them.

    Args:
        times: by sensor the dates of its images, datetime64, in any order.

    Raises:
        BadSample: the images of a sensor cannot be ordered.
    """
    first, *others = times
    aligned = {first: date_order(times[first], first)}
    frames = times[first][aligned[first]]
    for sensor in others:
        order = date_order(times[sensor], sensor)
        pairs = pair_dates(frames, times[sensor][order])
        aligned[sensor] = np.where(pairs < 0, -1, order[pairs])
    return aligned


def align_complete_dates(times: Mapping[str, Times], frame: int | None = None) -> dict[str, Ints]:
    """Return :func:`align_dates` of all frames, or of one, [1]; every sensor must have an image.

    Raises:
        BadSample: the images of a sensor cannot be ordered, or it has none for a frame.
    """
    aligned = align_dates(times)
    first = next(iter(times))
    if frame is not None:
        aligned = {sensor: which[[frame]] for sensor, which in aligned.items()}
    for sensor, which in aligned.items():
        if (lacking := which < 0).any():
            day = times[first][aligned[first][lacking][0]].astype("datetime64[D]")
            raise BadSample(
                f"{sensor} has no image for that of {first} of {day}: all are more than {MAX_DAYS_APART} "
                "days away, or go with another"
            )
    return aligned


def warn_of_pairs(
    name: str, dates: Mapping[str, npt.NDArray[Any]], valid: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Warn where images of two sensors at one position are not those nearest in time, or seasons apart.

    Args:
        name: of the data.
        dates: by sensor days, [T]; sensors whose series differ in length are not paired.
        valid: by sensor [T], ``False`` where an image is missing; others are complete.
    """
    for (one, days), (other, days_of_other) in combinations(dates.items(), 2):
        if len(days) != len(days_of_other):
            continue
        both = np.ones(len(days), bool)
        for sensor in (one, other):
            both &= valid.get(sensor, both)
        apart = np.abs(days[both].astype(np.int64)[:, None] - days_of_other[both].astype(np.int64))
        if (apart.diagonal() > apart.min(axis=1, initial=MAX_DAYS_APART)).any():
            warnings.warn(
                f"{name}: images of {one} and {other} are paired by their position in the series, and others "
                "are nearer in time; align them first (rsbackbones.data.date_alignment.align_dates)",
                stacklevel=3,
            )
