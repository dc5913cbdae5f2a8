"""Series of two sensors as pairs of images: aligned in time, and of one length for the whole source.

Shenoy et al. (S4), sections 5 ("Time Series Interpolation") and 6.3: of every place the shorter series stays,
each of its images gets the nearest one of the other sensor, and then every series is brought to one length.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.data.check import stack_valid
from rsbackbones.data.date_alignment import Times
from rsbackbones.data.series import align_series, fix_length, percentile_length
from rsbackbones.data.source import BadSample, DatedSource, EmptyImage, Sample
from rsbackbones.sensors import get_sensor

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How series become pairs.

    Attributes:
        by: ``date`` (:func:`~rsbackbones.data.series.align_series`), or ``index``: the k-th images of the
            sensors go together, whatever their dates, as many as the shorter series has.
        length: the images of every series; ``None``: the 90th percentile of the aligned lengths.
    """

    by: Literal["date", "index"] = "date"
    length: int | None = None


class AlignedSeries:
    """The series of one or two sensors of a source, in order of time, all of one length.

    All dates are looked up when it is built. Places without one of the sensors are left out; those whose
    dates cannot be read stay, and are a :class:`BadSample` when they are read. An image with missing pixels
    is not ``valid``. What was done is in ``notes``.

    Args:
        source: where images are read, one by one.
        sensors: one or two of its sensors.
        alignment: see :class:`Alignment`.

    Raises:
        ValueError: the source lacks a sensor, or no place has all of them.
    """

    def __init__(self, source: DatedSource, sensors: Sequence[str], alignment: Alignment) -> None:
        if lacking := [s for s in sensors if s not in source.bands]:
            raise ValueError(f"{source.name} lacks {', '.join(lacking)}; it has {', '.join(source.bands)}")
        if not 1 <= len(sensors) <= 2:
            raise ValueError(f"series of one or two sensors are aligned, got {', '.join(sensors)}")
        self.source, self.sensors, self.name = source, tuple(sensors), source.name
        self.bands = {sensor: source.bands[sensor] for sensor in sensors}
        places: list[int] = []
        found: list[_Aligned | None] = []
        for place in range(len(source)):
            try:
                times = source.times(place, self.sensors)
                aligned = _align(times, self.sensors, alignment.by) if set(sensors) <= set(times) else None
                if aligned is None:
                    continue
            except BadSample:
                aligned = None  # reported when it is read
            places.append(place)
            found.append(aligned)
        known = [aligned for aligned in found if aligned]
        if not known:
            raise ValueError(
                f"{source.name}: none of {len(source)} locations has dated series of {' and '.join(sensors)}"
            )
        lengths = [aligned.length for aligned in known]
        self.frames = alignment.length or percentile_length(lengths)
        self._places = places
        self._rows: list[dict[str, Ints] | None] = [
            {s: i[fix_length(len(i), self.frames)] for s, i in aligned.which.items()} if aligned else None
            for aligned in found
        ]
        # Neighbors in one file stay neighbors.
        self.block = max(1, source.block * len(places) // len(source)) if source.block > 1 else 1
        self.notes = (*source.notes, *_notes(known, len(source), self.sensors, alignment, self.frames))
        if apart := [source.describe(p) for p, x in zip(places, found, strict=True) if x and x.apart]:
            warnings.warn(
                f"{source.name}: the series of {' and '.join(sensors)} share no day in {len(apart)} of "
                f"{len(places)} locations, and are aligned all the same: {', '.join(apart[:5])}",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._places)

    def describe(self, place: int) -> str:
        """See :meth:`Source.describe`."""
        return self.source.describe(self._places[place])

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place at all dates, [T, C, H, W] by sensor, or at one, [C, H, W].

        Raises:
            BadSample: dates or a file cannot be read, no image of a sensor is usable, or at no date those of
                both, or the images are not on one grid.
        """
        rows = self._rows[place]
        if rows is None:  # say why
            _align(self.source.times(self._places[place], self.sensors), self.sensors, "date")
            raise BadSample("its dates were unreadable when the run began")
        if frame is not None:
            one = self._read(place, {sensor: which[[frame]] for sensor, which in rows.items()})
            return Sample(images={s: x[0] for s, x in one.images.items()}, dates=one.dates)
        return self._read(place, rows)

    def _read(self, place: int, rows: Mapping[str, Ints]) -> Sample:
        images: dict[str, Array] = {}
        dates: dict[str, Array] = {}
        valid: dict[str, Array] = {}
        times = self.source.times(self._places[place], self.sensors)
        for sensor, which in rows.items():
            read = {int(i): self._image(place, sensor, int(i)) for i in np.unique(which)}
            found = {i: sample for i, sample in read.items() if sample is not None}
            if len(sizes := sorted({sample.images[sensor].shape[-2:] for sample in found.values()})) > 1:
                raise BadSample(f"{sensor} has images of several sizes: {sizes}")
            images[sensor], valid[sensor] = stack_valid(
                sensor, [found[i].images[sensor] if i in found else None for i in which.tolist()]
            )
            dates[sensor] = times[sensor][which].astype("datetime64[D]").astype(np.int64)
        if len({image.shape[-2:] for image in images.values()}) > 1:
            sizes_of = ", ".join(f"{s} {x.shape[-2]} x {x.shape[-1]}" for s, x in images.items())
            raise BadSample(f"the sensors are not on one grid of pixels: {sizes_of}")
        if not np.logical_and.reduce(list(valid.values())).any():
            raise BadSample(f"at no date the images of both {' and '.join(rows)} are usable")
        return Sample(
            images=images,
            dates=dates,
            valid={s: held for s, held in valid.items() if not held.all()},
        )

    def _image(self, place: int, sensor: str, index: int) -> Sample | None:
        try:
            return self.source.read_images(self._places[place], {sensor: index})
        except EmptyImage:
            return None


@dataclass(frozen=True, kw_only=True)
class _Aligned:
    """The aligned series of a place, as indices into its dates; ``stays``: the sensor of the shorter one."""

    which: Mapping[str, Ints]
    stays: str
    days: npt.NDArray[np.float64]
    apart: bool

    @property
    def length(self) -> int:
        return len(self.which[self.stays])


def _align(times: Mapping[str, Times], sensors: Sequence[str], by: str) -> _Aligned:
    """Align the series of a place; images without a date are no part of them.

    Raises:
        BadSample: a sensor has no date.
    """
    held = {s: np.flatnonzero(~np.isnat(times[s])) for s in sensors}
    if lacking := [s for s, which in held.items() if not len(which)]:
        raise BadSample(f"{', '.join(lacking)} has no image with a date")
    days = {s: times[s][which] for s, which in held.items()}
    ordered = {s: held[s][np.argsort(days[s], kind="stable")] for s in sensors}
    if len(sensors) == 1:
        (only,) = sensors
        return _Aligned(which=ordered, stays=only, days=np.zeros(len(ordered[only])), apart=False)
    # Of equal lengths the radar stays.
    radar, other = sorted(sensors, key=lambda s: get_sensor(s).kind != "radar")
    stays = radar if len(held[radar]) <= len(held[other]) else other
    if by == "index":
        which = {s: order[: len(held[stays])] for s, order in ordered.items()}
    else:
        of_radar, of_other = align_series(days[radar], days[other])
        which = {s: held[s][{radar: of_radar, other: of_other}[s]] for s in sensors}
    first, second = (times[s][which[s]].astype("datetime64[s]") for s in sensors)
    ends = [(times[s][order[0]], times[s][order[-1]]) for s, order in ordered.items()]
    begin, end = (np.array(side, "datetime64[D]") for side in zip(*ends, strict=True))
    distance = np.abs((first - second).astype(np.float64)) / 86400
    return _Aligned(which=which, stays=stays, days=distance, apart=bool(end.min() < begin.max()))


def _notes(
    known: Sequence[_Aligned], places: int, sensors: Sequence[str], alignment: Alignment, length: int
) -> list[str]:
    """Return what was done to the series, for the record of a run."""
    lengths = np.array([aligned.length for aligned in known])
    notes = []
    if len(sensors) == 2:
        stays = {s: sum(aligned.stays == s for aligned in known) for s in sensors}
        orders = "; ".join(
            f"in {stays[s]} of {places} locations the series of {s} is the shorter one and stays, and "
            f"{_count(known, s, other)} of its images share one of {other} with another"
            for s, other in (tuple(sensors), tuple(reversed(sensors)))
        )
        days = np.concatenate([aligned.days for aligned in known])
        way = "the nearest in time" if alignment.by == "date" else "their number in the series"
        notes.append(
            f"{' and '.join(sensors)} aligned by {way}: {orders}; images are {days.mean():.1f} days apart on "
            f"average, at most {days.max():.0f}"
        )
        if left := places - len(known):
            notes.append(f"{left} of {places} locations have no readable dates of both sensors")
        if apart := sum(aligned.apart for aligned in known):
            notes.append(f"in {apart} locations the sensors share no day")
    how = "as stated" if alignment.length else "the 90th percentile"
    notes.append(
        f"all series have {length} images ({how}; they had {lengths.min()} to {lengths.max()}): in "
        f"{(lengths < length).sum()} locations the last image is repeated, "
        f"{int((length - lengths).clip(min=0).sum())} times in all, and {(lengths > length).sum()} lose "
        f"their last images, {int((lengths - length).clip(min=0).sum())} in all"
    )
    return notes


def _count(known: Sequence[_Aligned], stays: str, other: str) -> int:
    """Return how many images of the other sensor are repeated, where ``stays`` stays."""
    return sum(len(x.which[other]) - len(np.unique(x.which[other])) for x in known if x.stays == stays)
