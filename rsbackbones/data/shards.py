"""Packed training data: a folder of shards, each a zip of Zarr arrays, and ``dataset.json``.

A shard is a Zarr (version 2) group in an uncompressed zip: ``<sensor>/<i>`` is the array [T, C, H, W] of its
i-th place, in chunks of one date; places may differ in size. The group's attributes hold the places' names
and dates, and which images a place lacks (their chunks are 0). ``dataset.json``, written last, says what the
shards hold, the SHA-256 of each, and the statistics that the source came with. The function ``pack`` makes
it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.check import validate_sample
from rsbackbones.data.date_alignment import Times, undated
from rsbackbones.data.file_cache import FileCache
from rsbackbones.data.source import BadSample, Sample
from rsbackbones.data.zarr_zip import DAMAGE, ZarrZip, ZarrZipWriter, narrow
from rsbackbones.files.bounds import read_json
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.typed_fields import check_fields, find_misfit

Array = npt.NDArray[Any]
SCHEMA = 1
DATASET_FILE = "dataset.json"


class ShardWriter:
    """Writes a shard; it takes its name only when it is finished and the ``with`` block ends."""

    def __init__(self, path: Path) -> None:
        self._names: list[str] = []
        self._dates: list[dict[str, list[int]]] = []
        self._valid: list[dict[str, list[bool]]] = []
        self._group = ZarrZipWriter(path)

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, sample: Sample) -> None:
        """Write a place at all its dates, [T, C, H, W] for every sensor."""
        for sensor, image in sample.images.items():
            self._group.array(f"{sensor}/{len(self)}", narrow(image))
        self._names.append(name)
        self._dates.append({sensor: days.tolist() for sensor, days in sample.dates.items()})
        self._valid.append({sensor: held.tolist() for sensor, held in sample.valid.items()})

    def finish(self, **attributes: object) -> None:
        """Write the group's attributes: the places, and those given."""
        places = {"names": self._names, "dates": self._dates, "valid": self._valid}
        self._group.attributes({**places, **attributes})

    def __enter__(self) -> "ShardWriter":
        self._group.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._group.__exit__(kind, error, trace)


class PackedSource:
    """Places of a folder that ``pack`` wrote, also series whose lengths differ (``frames`` is ``None``).

    Args:
        folder: it holds ``dataset.json``.

    Raises:
        ValueError: there is no such file, it is damaged, or of another schema.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.dataset = read_dataset(self.folder)
        self.name: str = self.dataset["name"]
        self.bands = {sensor: tuple(names) for sensor, names in self.dataset["bands"].items()}
        self.frames: int | None = self.dataset["frames"]
        self.block: int = self.dataset["per_shard"]
        self.notes = tuple(self.dataset["notes"])
        self._ends = np.cumsum([shard["places"] for shard in self.dataset["shards"]])
        self._shards: FileCache[ZarrZip] = FileCache(ZarrZip)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def describe(self, place: int) -> str:
        """Return the shard and the place's number in it; :meth:`place_name` is the packed source's own."""
        path, index = self._find(place)
        return f"{path.name}[{index}]"

    def place_name(self, place: int) -> str:
        """Return what the packed source called the place; opens its shard.

        Raises:
            BadSample: the shard is damaged.
        """
        path, index = self._find(place)
        try:
            return str(self._shards.open(str(path)).attributes["names"][index])
        except DAMAGE as error:
            raise BadSample(f"cannot read shard {path}: {error}") from error

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place at one date, decoding only that, or at all dates.

        Raises:
            BadSample: the shard is missing or damaged, or the place lacks an image of the one date.
        """
        if frame is not None and self.frames is None:
            raise ValueError(f"{self.name}: series have dates of their own for every sensor, and no frames")
        path, index = self._find(place)
        try:
            shard = self._shards.open(str(path))
            images = {sensor: shard.read(f"{sensor}/{index}", frame) for sensor in self.bands}
            days = shard.attributes["dates"][index]
            # Earlier shards do not say it: their places lack nothing.
            valid = shard.attributes["valid"][index] if "valid" in shard.attributes else {}
            chosen = slice(None) if frame is None else slice(frame, frame + 1)
            dates = {sensor: np.array(values, np.int64)[chosen] for sensor, values in days.items()}
            held = {sensor: np.array(flags, bool) for sensor, flags in valid.items()}
        except DAMAGE as error:
            raise BadSample(f"cannot read shard {path}: {error}") from error
        if frame is None:
            lengths = {sensor: len(image) for sensor, image in images.items()}
            frames = lengths if self.frames is None else self.frames
            return validate_sample(images, self.bands, frames=frames, dates=dates, valid=held)
        if lacking := [sensor for sensor, flags in held.items() if not flags[frame]]:
            raise BadSample(f"{', '.join(lacking)} has no usable image at date {frame}")
        return validate_sample(images, self.bands, frames=None, dates=dates)

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Times]:
        """See :meth:`DatedSource.times`; the images are those that packing aligned."""
        path, index = self._find(place)
        try:
            attributes = self._shards.open(str(path)).attributes
        except DAMAGE as error:
            raise BadSample(f"cannot read shard {path}: {error}") from error
        days, valid = attributes["dates"][index], attributes.get("valid", {})
        times = {
            s: np.array(days[s], "datetime64[D]") if s in days else undated(self.frames or 0) for s in sensors
        }
        for sensor, flags in (valid[index] if valid else {}).items():
            if sensor in times:
                times[sensor][~np.array(flags, bool)] = np.datetime64("NaT")
        return times

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        path, index = self._find(place)
        try:
            shard = self._shards.open(str(path))
            images = {sensor: shard.read(f"{sensor}/{index}", i) for sensor, i in which.items()}
            days = shard.attributes["dates"][index]
        except DAMAGE as error:
            raise BadSample(f"cannot read shard {path}: {error}") from error
        dates = {s: np.array(days[s][i : i + 1], np.int64) for s, i in which.items() if s in days}
        return validate_sample(images, {s: self.bands[s] for s in which}, frames=None, dates=dates)

    def statistics(self) -> dict[str, dict[str, tuple[float, float]]] | None:
        """Return by sensor and band the mean and deviation that the packed source came with.

        Raises:
            ValueError: they are damaged.
        """
        if (held := self.dataset.get("statistics")) is None:
            return None
        if misfit := find_misfit(held, dict[str, dict[str, tuple[float, float]]], "statistics"):
            raise ValueError(
                f"cannot read {self.folder / DATASET_FILE}: {misfit.path} must be a mean and a deviation"
            )
        return {s: {band: (mean, std) for band, (mean, std) in of.items()} for s, of in held.items()}

    def verify(self) -> list[str]:
        """Hash all shards; return what is wrong with which: nothing, where all are as they were written."""
        wrong = []
        for shard in self.dataset["shards"]:
            path = self.folder / shard["file"]
            if not path.is_file():
                wrong.append(f"{path} is missing")
            elif path.stat().st_size != shard["bytes"]:
                wrong.append(f"{path} has {path.stat().st_size} bytes, expected {shard['bytes']}")
            elif (found := sha256_of(path)) != shard["sha256"]:
                wrong.append(f"{path} has the SHA-256 {found}, expected {shard['sha256']}")
        return wrong

    def _find(self, place: int) -> tuple[Path, int]:
        """Return the shard that holds a place, and the place's index in it."""
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} of {len(self)}")
        number = int(np.searchsorted(self._ends, place, side="right"))
        shard = self.dataset["shards"][number]
        return self.folder / shard["file"], place - (int(self._ends[number]) - shard["places"])

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedSource, (str(self.folder),)


def read_dataset(folder: Path) -> dict[str, Any]:
    """Read ``dataset.json``.

    Raises:
        ValueError: it is missing, damaged, or of another schema.
    """
    path = folder / DATASET_FILE
    try:
        dataset: dict[str, Any] = read_json(path)
        check_fields(_Dataset, {name: dataset[name] for name in _DATASET_FIELDS}, "dataset")
        for shard in dataset["shards"]:
            check_fields(_Entry, shard, "shards")
            if Path(shard["file"]).name != shard["file"] or shard["places"] < 1:
                raise ValueError(
                    f"shards: {shard['file']!r} of {shard['places']} places is no file beside it"
                )
        schema, places = dataset["schema"], sum(shard["places"] for shard in dataset["shards"])
    except FileNotFoundError as error:
        raise ValueError(f"there is no {path}; a packed folder has one when it is complete") from error
    except KeyError as error:
        raise ValueError(f"cannot read {path}: it lacks {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if schema != SCHEMA or places < 1:
        raise ValueError(f"{path} is of schema {schema} with {places} places; this version reads {SCHEMA}")
    return dataset


def read_attributes(path: Path) -> dict[str, Any]:
    """Read the attributes of a whole shard.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return ZarrZip(str(path)).attributes
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and pack again") from error


@dataclass(frozen=True)
class _Dataset:
    """The fields of ``dataset.json`` that are read; lists of shards are as long as they are."""

    schema: int
    name: str
    bands: Mapping[str, tuple[str, ...]]
    frames: int | None
    per_shard: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """The fields of a shard in ``dataset.json``."""

    file: str
    places: int
    bytes: int
    sha256: str


_DATASET_FIELDS = tuple(field.name for field in fields(_Dataset))
