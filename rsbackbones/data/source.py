"""The interface of sources of training images.

A source holds *places*. A place has ``frames`` dates in order of time (1 where the data are single images),
and for each of the source's sensors an image per date; or its sensors have series of their own lengths
(``frames`` is ``None``), which :mod:`rsbackbones.data.aligned_series` makes pairs of. Values are raw:
Sentinel-2 in DN (reflectance x 10000, without the offset of 1000), Sentinel-1 in dB; pictures, and those of
other sensors, as the files have them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]


class BadSample(ValueError):
    """A sample cannot be used: unreadable, NaN, wrong shape, a sensor missing. The message has the reason."""


class EmptyImage(BadSample):
    """An image holds NaN or infinity, or nothing but zeros: of a series it is left out."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One place at one date: ``images[modality]`` is [C, H, W]; at all dates [T, C, H, W].

    All sensors are on one grid of pixels. ``dates[modality]``: days since 1970-01-01, one per frame, where
    the source knows them. T is the source's ``frames``, or the sensor's own.

    ``valid[modality]``, only in samples of all dates: [T] booleans, ``False`` where the sensor has no usable
    image at a date. Its pixels are then 0, and its date is that of the frame where there is no image at all.
    A sensor that is not named has all its images; every sensor has at least one.
    """

    images: "dict[str, Array]"
    dates: "dict[str, Array]" = field(default_factory=dict)
    valid: "dict[str, Array]" = field(default_factory=dict)


class Source(Protocol):
    """Places to draw samples from. Instances travel to the loader's workers by pickle.

    Attributes:
        name: short, for reports.
        bands: for each of the source's sensors, the names of the channels, in order.
        block: the number of consecutive places in one file, which are cheap to read one after another; 1
            where order makes no difference.
        notes: how values were changed on reading ("subtracted 1000 DN"), recorded with the run.
    """

    name: str
    bands: dict[str, tuple[str, ...]]
    block: int
    notes: tuple[str, ...]

    @property
    def frames(self) -> int | None:
        """Dates per place; ``None`` where series have their own lengths, and are only read whole."""

    def __len__(self) -> int:
        """Return the number of places."""
        ...

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place at one date, or at all of them where ``frame`` is ``None``.

        Raises:
            BadSample: it cannot be used; a sensor has no usable image at the one date, or at none of all.
        """
        ...

    def describe(self, place: int) -> str:
        """Return a name to find the place by: a file, a key."""
        ...


class DatedSource(Source, Protocol):
    """A source whose images can be read one by one; every reader of this package is one."""

    def times(self, place: int, sensors: Sequence[str]) -> "dict[str, Array]":
        """Return the dates of a place's images by sensor, datetime64 [n], NaT for one that is missing.

        In any order; a sensor that the place lacks is left out. Equal dates mean equal times.

        Raises:
            BadSample: they cannot be read.
        """
        ...

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """Read one image of each sensor that is named, [C, H, W]: its index in :meth:`times`.

        Raises:
            BadSample: one of them cannot be used.
        """
        ...
