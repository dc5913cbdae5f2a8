"""Samples of some sensors of a source: every image of one sensor, or every image that has partners.

A source reads a place at a date with all its sensors. A training task may need fewer: then an image must not
be lost because another sensor has none, and an image of one sensor may be the partner of several of another.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rsbackbones.data.date_alignment import align_dates, nearest_dates
from rsbackbones.data.source import BadSample, DatedSource, Sample

Ints = npt.NDArray[np.int32]


class SelectedSource:
    """The images of some sensors, each pairing a place with one date.

    All dates are looked up when it is built: for SSL4EO-S12 v1.0 two folders are listed for each place, for
    the tar shards of v1.1 every member is read once. Pack such data first.

    Args:
        source: where they are read.
        sensors: which; every image of the first is a sample if the others have a partner for it.
        pair_days: a partner is the image nearest in time, at most so many days away, and may be that of
            several. ``None``: one to one, at most 60 days away.

    Raises:
        ValueError: the source lacks a sensor.
    """

    frames = 1

    def __init__(self, source: DatedSource, sensors: Sequence[str], *, pair_days: int | None = None) -> None:
        if lacking := [s for s in sensors if s not in source.bands]:
            raise ValueError(f"{source.name} lacks {', '.join(lacking)}; it has {', '.join(source.bands)}")
        self.source, self.sensors = source, tuple(sensors)
        self.name = source.name
        self.bands = {sensor: source.bands[sensor] for sensor in sensors}
        rows: list[tuple[int, ...]] = []
        images = 0
        for place in range(len(source)):
            try:
                times = source.times(place, self.sensors)
                if self.sensors[0] not in times:
                    continue
                images += len(times[self.sensors[0]])
                which = _partners(times, self.sensors, pair_days)
            except BadSample:
                rows.append((place, *(-1 for _ in sensors)))  # reported when it is read
                continue
            rows += [(place, *row) for row in np.stack([which[s] for s in sensors], axis=1).tolist()]
        self._rows: Ints = np.array(rows, np.int32).reshape(-1, 1 + len(sensors))
        # Neighbors in one file stay neighbors.
        self.block = max(1, source.block * len(rows) // max(1, len(source))) if source.block > 1 else 1
        self.notes = tuple(source.notes)
        if len(sensors) > 1 and len(rows) < images:
            self.notes += (f"{len(rows)} of {images} images of {sensors[0]} have partners",)

    def __len__(self) -> int:
        return len(self._rows)

    def describe(self, place: int) -> str:
        """See :meth:`Source.describe`."""
        return self.source.describe(int(self._rows[place, 0]))

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a sample; with ``frame`` [C, H, W], without it [1, C, H, W].

        Raises:
            BadSample: an image cannot be used.
        """
        if frame not in (None, 0):
            raise IndexError(f"frame {frame} of 1")
        row = self._rows[place].tolist()
        if row[1] < 0:  # its dates could not be read: say why
            times = self.source.times(row[0], self.sensors)
            _partners(times, self.sensors, None)
            raise BadSample(f"its dates were unreadable when the run began: {', '.join(times)}")
        sample = self.source.read_images(row[0], dict(zip(self.sensors, row[1:], strict=True)))
        if frame is None:
            return Sample(images={s: x[None] for s, x in sample.images.items()}, dates=sample.dates)
        return sample


def _partners(
    times: dict[str, npt.NDArray[np.generic]], sensors: Sequence[str], pair_days: int | None
) -> dict[str, npt.NDArray[np.int64]]:
    """Return by sensor the images of each sample, [n]."""
    first, *others = sensors
    if any(sensor not in times for sensor in others):
        return dict.fromkeys(sensors, np.zeros(0, np.int64))
    frames = np.flatnonzero(~np.isnat(times[first]))
    which = {first: frames}
    if pair_days is None and others:
        held = {s: np.flatnonzero(~np.isnat(times[s])) for s in sensors}
        aligned = align_dates({s: times[s][held[s]] for s in sensors})
        which = {s: np.where(i < 0, -1, held[s][i]) for s, i in aligned.items()}
    elif pair_days is not None:
        which |= {s: nearest_dates(times[first][frames], times[s], pair_days) for s in others}
    complete = np.all([i >= 0 for i in which.values()], axis=0)
    return {sensor: i[complete] for sensor, i in which.items()}
