"""Folders of GeoTIFFs: a file per place and sensor, paired by name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rsbackbones.data.check import validate_sample
from rsbackbones.data.date_alignment import Times, undated
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.rasters import RasterStack, find_bands, not_understood
from rsbackbones.data.source import BadSample, Sample
from rsbackbones.data.unit_conversion import convert_unit
from rsbackbones.sensors import SEARCHED_SENSORS, SENSORS, get_sensor

Array = npt.NDArray[Any]


class GeoTiffSource:
    """Single-date places in GeoTIFFs. Needs the extra ``geo``.

    The files lie in ``ROOT/s2/*.tif`` and ``ROOT/s1/*.tif`` (or ``landsat_oli``, any sensor's name), or
    together in ``ROOT``. Files of one place:

    1. In folders by sensor, if any stem occurs in all of them, files of equal stem are one place.
    2. Else the sensor's word is taken off the stem, and what remains is the place's name. Words lie between
       ``_``, ``-`` and ``.``; the sensor's word is the one that begins with its name: ``x_S2Hand`` and
       ``x_S1Hand`` are the place ``x``.
    3. In one folder where no stem has such a word, every file is a place and holds all sensors.

    A place that lacks a sensor is a :class:`BadSample` when it is read. All rasters of a place must be on one
    grid. Values are float32, with the files' scale and offset tags applied; reflectances that these make
    become digital numbers (x 10000), unless ``units`` names their unit.

    Args:
        root: the folder.
        bands: for each sensor the names of the files' bands, in order, where the files do not describe them.
        units: by sensor, where it is not that of the files; 8-bit values are refused without one, see
            :func:`rsbackbones.data.rasters.find_bands`.
        name: default: the folder's name.

    Raises:
        ValueError: no GeoTIFFs, two files of one sensor and place, no place with all sensors, bands that
            no place makes clear, or 8-bit values.
    """

    block = 1
    frames = 1
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path,
        *,
        bands: Mapping[str, Sequence[str]] | None = None,
        units: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        self.root = Path(root)
        self._units = dict(units or {})
        self.name = name or self.root.name
        self._names = {sensor: tuple(names) for sensor, names in (bands or {}).items()}
        for sensor in self._names:
            get_sensor(sensor)
        self._sensors, self._places = _pair(self.root)
        self._keys = sorted(self._places)
        whole = [key for key in self._keys if all(s in self._places[key] for s in self._sensors)]
        if not whole:
            raise ValueError(
                f"{self.root}: no place has a file of each of {', '.join(self._sensors)}; the stems must "
                f"be equal, or but for the sensor's word (x_S2.tif, x_S1.tif). The first: {self._keys[:3]}"
            )
        self.bands = self._most_frequent_bands(whole)

    def _most_frequent_bands(self, keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the bands of most of some places, evenly over the source; the first may be an exception."""
        seen: Counter[tuple[tuple[str, tuple[str, ...]], ...]] = Counter()
        problem: ValueError | None = None
        for i in sorted({i * len(keys) // _PROBED_SAMPLES for i in range(_PROBED_SAMPLES)}):
            bands: dict[str, tuple[str, ...]] = {}
            try:
                for sensor, path in self._places[keys[i]].items():
                    wanted = SEARCHED_SENSORS if sensor == _ALL else (sensor,)
                    found, _ = find_bands(path, wanted, self._names.get(sensor), units=self._units)
                    bands |= {modality: tuple(held) for modality, held in found.items()}
            except ValueError as error:
                problem = error  # the place is reported when it is read
                continue
            seen[tuple(bands.items())] += 1
        if not seen:
            raise ValueError(f"{self.root}: no probed file can be used: {problem}") from problem
        return dict(seen.most_common(1)[0][0])

    def __len__(self) -> int:
        return len(self._keys)

    def describe(self, place: int) -> str:
        """Return the name of a place: the common part of its files' stems."""
        return self._keys[place]

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place; with ``frame`` [C, H, W], without it [1, C, H, W].

        Raises:
            BadSample: a sensor is missing, a file cannot be read, grids differ, or pixels have no data.
        """
        if frame not in (None, 0):
            raise IndexError(f"frame {frame} of 1")
        sample = self.read_images(place, dict.fromkeys(self.bands, 0))
        return sample if frame == 0 else Sample(images={s: x[None] for s, x in sample.images.items()})

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Times]:
        """See :meth:`DatedSource.times`: the images of a place count as of one date."""
        files = self._places[self._keys[place]]
        return {sensor: undated(1) for sensor in sensors if sensor in files or _ALL in files}

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        bands = {sensor: self.bands[sensor] for sensor in self.bands if sensor in which}
        files = self._places[self._keys[place]]
        if lacking := [s for s in self._sensors if s not in files and (s in which or s == _ALL)]:
            raise BadSample(f"{', '.join(lacking)} is missing; there is {next(iter(files.values())).name}")
        files = {sensor: path for sensor, path in files.items() if sensor in which or sensor == _ALL}
        images, valid, _ = read_raw(
            list(files.values()), bands, [self._names.get(sensor) for sensor in files], self._units
        )
        if not valid.all():
            raise BadSample(f"{int((~valid).sum())} of {valid.size} pixels have no data")
        return validate_sample(images, bands, frames=None)


def read_raw(
    paths: Sequence[Path],
    bands: Mapping[str, tuple[str, ...]],
    names: Sequence[Sequence[str] | None],
    units: Mapping[str, str],
) -> tuple[dict[str, Array], Array, Grid]:
    """Read rasters on one grid in the units of a :class:`Sample`, DN and dB.

    Args:
        paths: the files.
        bands: by sensor those to read, in this order.
        names: for every file the names of its bands, in order; ``None``: its descriptions.
        units: those that the user named, by sensor; no values of these sensors are converted.

    Returns:
        [C, H, W] float32 by sensor; [H, W] booleans, True where all bands have data; and the grid.

    Raises:
        BadSample: a file cannot be read, the grids differ, or bands are missing.
    """
    try:
        with RasterStack(paths, tuple(bands), wanted=bands, names=names, units=units) as stack:
            arrays, valid = stack.read()
            held, unclear, grid = stack.bands, not_understood(stack.ignored), stack.grid
            for sensor, unit in stack.stated_units.items():
                if sensor not in units:
                    arrays[sensor] = convert_unit(arrays[sensor], held[sensor], sensor, unit, "dn")
    except ValueError as error:
        raise BadSample(str(error)) from error
    for sensor, wanted in bands.items():
        if set(held.get(sensor, ())) != set(wanted):
            raise BadSample(
                f"{sensor} has the bands {', '.join(held.get(sensor, ()))}, not {', '.join(wanted)}{unclear}"
            )
    images = {s: arrays[s][[held[s].index(band) for band in wanted]] for s, wanted in bands.items()}
    return images, valid, grid


# The number of places that are read to find the bands of the files.
_PROBED_SAMPLES = 16
_ALL = "*"  # the one file of a place that holds all sensors


def tiffs_in(folder: Path) -> list[Path]:
    """Return the GeoTIFFs of a folder, in order of name; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".tif", ".tiff") and p.name[0] != ".")


def _pair(root: Path) -> tuple[tuple[str, ...], dict[str, dict[str, Path]]]:
    """Return the sensors, and the files of every place by sensor; the rule is :class:`GeoTiffSource`'s."""
    by_sensor = {sensor: found for sensor in SENSORS if (found := tiffs_in(root / sensor))}
    flat = tiffs_in(root)
    if by_sensor and flat:
        raise ValueError(
            f"{root} holds GeoTIFFs and folders of them ({', '.join(by_sensor)}); which are meant?"
        )
    if not by_sensor and not flat:
        raise ValueError(f"{root} holds no GeoTIFFs, and no folders s2/ and s1/ of them")
    if flat:
        words = [[sensor for sensor in SEARCHED_SENSORS if _sensor_words(p.stem, sensor)] for p in flat]
        if not any(words):
            return (_ALL,), _unique((path.stem, _ALL, path) for path in flat)
        if unclear := [path.name for path, held in zip(flat, words, strict=True) if len(held) != 1]:
            raise ValueError(
                f"{root}: the names of {', '.join(unclear[:5])} do not tell which sensor they are of; put "
                "the files into folders s2/ and s1/"
            )
        for path, (sensor,) in zip(flat, words, strict=True):
            by_sensor.setdefault(sensor, []).append(path)
    stems = [{path.stem for path in paths} for paths in by_sensor.values()]
    equal = bool(set.intersection(*stems))
    sensors = tuple(sensor for sensor in SENSORS if sensor in by_sensor)
    return sensors, _unique(
        (path.stem if equal else _without_word(path.stem, sensor), sensor, path)
        for sensor in sensors
        for path in by_sensor[sensor]
    )


def _unique(files: Any) -> dict[str, dict[str, Path]]:
    places: dict[str, dict[str, Path]] = {}
    for key, sensor, path in files:
        other = places.setdefault(key, {}).setdefault(sensor, path)
        if other != path:
            raise ValueError(f"{other} and {path} are both of the place {key!r} and one sensor; rename one")
    return places


def _sensor_words(stem: str, sensor: str) -> list[str]:
    return [word for word in re.split(r"[_.\-]", stem) if word.lower().startswith(sensor)]


def _without_word(stem: str, sensor: str) -> str:
    """Take the sensor's word off a stem, and the separator before it; a stem with none or two stays."""
    words = _sensor_words(stem, sensor)
    if len(words) != 1:
        return stem
    return re.sub(rf"(^|[_.\-]){re.escape(words[0])}(?=$|[_.\-])", "", stem, count=1).lstrip("_.-") or stem
