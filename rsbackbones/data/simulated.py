"""Simulated places with seasons, where real dated places are too few. Whoever trains on them says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.check import validate_sample
from rsbackbones.data.date_alignment import Times
from rsbackbones.data.simulator import MIN_SIZE, S1_BANDS, S2_BANDS, simulate_days
from rsbackbones.data.source import Sample

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

_JITTER = 15  # days by which a date departs from the stated one, at most
_LATER = 5  # days after Sentinel-2 until Sentinel-1 passes, at most


@dataclass(frozen=True, kw_only=True)
class SimulatedPlaces:
    """Which places to simulate, in plain types.

    Attributes:
        places: how many.
        size: their side in pixels of 10 m.
        seed: other seeds give other places.
        year: of the first date.
        days: days of the year about which Sentinel-2 sees a place, one per frame: a date departs from them by
            up to 15 days, and Sentinel-1 passes 1 to 5 days later. Default: the middle of January, April,
            July and October.
    """

    places: int
    size: int = 96
    seed: int = 0
    year: int = 2021
    days: tuple[int, ...] = (15, 105, 196, 288)


class SimulatedSource:
    """Places drawn by :mod:`rsbackbones.data.simulator`, each of its own geography, in all its bands.

    A place is drawn when it is first read, once in every process, and kept: it is a function of ``seed`` and
    its number. It takes 0.1 to 0.2 s and 1.2 MB at 96 pixels and four dates.

    Args:
        places: which.
        name: default: ``simulated``.

    Raises:
        ValueError: no places or dates, a size that the simulator does not draw, or days that are not in 1 to
            366, in order, and far enough apart for their images to stay in order.
    """

    block = 1
    notes: tuple[str, ...] = ("simulated by rsbackbones.data.simulator, not observed",)

    def __init__(self, places: SimulatedPlaces, name: str | None = None) -> None:
        if places.places < 1 or places.size < MIN_SIZE or places.seed < 0:
            raise ValueError(
                f"simulated places need places of at least 1, size of at least {MIN_SIZE} and a seed that is "
                f"not negative, got {places}"
            )
        days, least = places.days, 2 * _JITTER + _LATER
        near = any(later - day < least for day, later in pairwise(days))
        if near or not days or not all(1 <= day <= 366 for day in days):
            raise ValueError(f"days must be in 1..366, in order and at least {least} apart, got {days}")
        self.places = places
        self.name = name or "simulated"
        self.bands = {"s2": S2_BANDS, "s1": S1_BANDS}
        self.frames = len(days)
        self._drawn: dict[int, tuple[dict[str, Array], dict[str, Ints]]] = {}

    def __len__(self) -> int:
        return self.places.places

    def describe(self, place: int) -> str:
        """Return all that a place is drawn from."""
        stated = self.places
        days = " ".join(map(str, stated.days))
        return f"place {place} of seed {stated.seed}, {stated.size} pixels, {stated.year} about day {days}"

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place at one date or at all; all are drawn at the first read."""
        images, days = self._kept(place)
        dates = {sensor: days[sensor] if frame is None else days[sensor][[frame]] for sensor in days}
        # Copies: what is kept is not the reader's to change.
        chosen = {sensor: (x if frame is None else x[frame]).copy() for sensor, x in images.items()}
        return validate_sample(chosen, self.bands, frames=self.frames if frame is None else None, dates=dates)

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Times]:
        """See :meth:`DatedSource.times`; draws the place."""
        days = self._kept(place)[1]
        return {sensor: days[sensor].astype("datetime64[D]") for sensor in sensors}

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        images, days = self._kept(place)
        dates = {sensor: days[sensor][[i]] for sensor, i in which.items()}
        chosen = {sensor: images[sensor][i].copy() for sensor, i in which.items()}
        return validate_sample(chosen, {s: self.bands[s] for s in which}, frames=None, dates=dates)

    def _kept(self, place: int) -> tuple[dict[str, Array], dict[str, Ints]]:
        if place not in self._drawn:
            self._drawn[place] = self._draw(place)
        return self._drawn[place]

    def _draw(self, place: int) -> tuple[dict[str, Array], dict[str, Ints]]:
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} of {len(self)}")
        seeds = np.random.SeedSequence((self.places.seed, place))
        rng = np.random.default_rng(seeds)
        start = np.datetime64(f"{self.places.year:04d}-01-01").astype(np.int64)
        optical = start + np.array(self.places.days) - 1 + rng.integers(-_JITTER, _JITTER + 1, self.frames)
        dates = {"s2": optical, "s1": optical + rng.integers(1, _LATER + 1, self.frames)}
        days = [_day_of_year(day) for sensor in ("s2", "s1") for day in dates[sensor]]
        size, geography = self.places.size, int(seeds.generate_state(1)[0])
        scenes = simulate_days(size, size, seed=geography, days=days)
        images: dict[str, Array] = {
            "s2": np.stack([scene.s2 for scene in scenes[: self.frames]]),
            "s1": np.stack([scene.s1 for scene in scenes[self.frames :]]),
        }
        return images, dates

    def __reduce__(self) -> tuple[Any, ...]:
        return SimulatedSource, (self.places, self.name)


def _day_of_year(day: np.int64) -> int:
    date = day.astype("datetime64[D]")
    return int((date - date.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64)) + 1
