"""The files of PASTIS-R as published, and its series as training data without labels.

Garnot and Landrieu, "Panoptic Segmentation of Satellite Image Time Series with Convolutional Temporal
Attention Networks", ICCV 2021, and Garnot et al., "Multi-Modal Temporal Attention Models for Crop Mapping
from Satellite Time Series", ISPRS 2022. PASTIS, without radar, has the same layout.

- ``metadata.geojson``: of every patch ``ID_PATCH``, ``Fold``, and ``dates-S2``, ``dates-S1A``, ``dates-S1D``:
  an object, or its JSON text, from the number of an image to YYYYMMDD.
- ``DATA_S2/S2_ID.npy`` [T, 10, H, W], digital numbers; ``DATA_S1A/S1A_ID.npy`` of ascending and
  ``DATA_S1D/S1D_ID.npy`` of descending orbits, [T, 3, H, W]: VV, VH and VV - VH in dB.
- ``ANNOTATIONS/TARGET_ID.npy``: the labels (:mod:`rsbackbones.data.labelled.pastis`).
- ``NORM_S2_patch.json`` and so on: mean and deviation of every band, by fold. Those of the training folds are
  averaged, as the authors do.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.data.check import stack_valid, validate_sample
from rsbackbones.data.date_alignment import Times
from rsbackbones.data.source import BadSample, EmptyImage, Sample

Orbit = Literal["ascending", "descending", "both"]
_ORBITS = {"ascending": ("S1A",), "descending": ("S1D",), "both": ("S1A", "S1D")}
BANDS = {
    "s2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    "s1": ("VV", "VH", "VV/VH"),
}
# The folds that the authors train, validate and test on.
SPLITS = {1: "train", 2: "train", 3: "train", 4: "val", 5: "test"}
METADATA = "metadata.geojson"
LABELS = "ANNOTATIONS"

Days = npt.NDArray[Any]


def is_pastis(folder: Path) -> bool:
    """Return whether a folder is laid out as PASTIS."""
    return (folder / METADATA).is_file() and (folder / LABELS).is_dir()


def find_series(folder: Path, orbit: Orbit) -> dict[str, tuple[str, ...]]:
    """Return by sensor the kinds of series (``S2``, ``S1A``) that a folder holds.

    Raises:
        ValueError: there are none, or there is no such orbit.
    """
    if orbit not in _ORBITS:
        raise ValueError(f"orbit must be one of {', '.join(_ORBITS)}, got {orbit!r}")
    held = {"s2": ("S2",), "s1": _ORBITS[orbit]}
    kinds = {m: names for m, names in held.items() if all((folder / f"DATA_{n}").is_dir() for n in names)}
    if not kinds:
        raise ValueError(f"{folder} has neither DATA_S2 nor DATA_{' and DATA_'.join(held['s1'])}")
    return kinds


def orbit_notes(kinds: Mapping[str, Sequence[str]], orbit: Orbit) -> tuple[str, ...]:
    """Return which radar images are used, in words."""
    said = "both orbits" if orbit == "both" else f"{orbit} orbits"
    return (f"Sentinel-1: {said}",) if "s1" in kinds else ()


@dataclass(frozen=True)
class Row:
    """What ``metadata.geojson`` has of a patch."""

    id: str
    fold: int
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class Patch:
    """The series of a patch: by kind (``S2``, ``S1A``) its path and the dates of its images."""

    id: str
    series: Mapping[str, tuple[Path, Days]]

    def days(self, kinds: Mapping[str, Sequence[str]]) -> dict[str, Days]:
        """Return by sensor the dates of its images, in the order of the files."""
        return {m: np.concatenate([self.series[k][1] for k in names]) for m, names in kinds.items()}


def read_rows(folder: Path) -> list[Row]:
    """Return the patches of ``metadata.geojson``.

    Raises:
        ValueError: it cannot be read, or a patch has no number or none of the five folds.
    """
    rows = []
    for feature in _features(folder / METADATA):
        try:
            properties = feature["properties"]
            row = Row(str(properties["ID_PATCH"]), int(properties["Fold"]), properties)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / METADATA}: a patch needs the properties ID_PATCH and Fold: {error!r}"
            ) from error
        if row.fold not in SPLITS:
            raise ValueError(f"{folder.name}: {row.id}: Fold must be one of 1 to 5, got {row.fold}")
        rows.append(row)
    return rows


def read_patch(folder: Path, row: Row, kinds: Mapping[str, Sequence[str]]) -> Patch:
    """Return the series of a patch.

    Raises:
        ValueError: a file or a date cannot be read, or their number is not that of the images. Patch and
            sensor are named.
    """
    series = {}
    for kind in (kind for names in kinds.values() for kind in names):
        path = folder / f"DATA_{kind}" / f"{kind}_{row.id}.npy"
        try:
            days, images = _days(row.properties.get(f"dates-{kind}")), len(load(path))
            if len(days) != images:
                raise ValueError(f"{len(days)} dates and {images} images")
        except ValueError as error:
            raise ValueError(f"{folder.name}: {row.id}: {kind}: {error}") from error
        series[kind] = path, days
    return Patch(row.id, series)


class PastisSource:
    """The series of PASTIS or PASTIS-R, in the order of ``metadata.geojson``; a :class:`DatedSource`.

    A patch whose files or dates cannot be read is a :class:`BadSample` when it is read.

    Args:
        root: the folder of ``metadata.geojson``.
        orbit: of the radar images; those of ``both`` are one series.
        split: ``train`` (folds 1 to 3), ``val`` (4), ``test`` (5), or ``all``.
        nodata: the value of pixels without data. An image that holds it is missing.

    Raises:
        ValueError: the folder cannot be used, or there is no such orbit or split.
    """

    block = 1
    frames: int | None = None

    def __init__(
        self, root: str | Path, *, orbit: Orbit = "ascending", split: str = "train",
        nodata: float | None = None,
    ) -> None:  # fmt: skip
        self.root = Path(root)
        self.name = self.root.resolve().name
        self._kinds = find_series(self.root, orbit)
        self.bands = {m: BANDS[m] for m in self._kinds}
        self._nodata = nodata
        if split not in (known := (*dict.fromkeys(SPLITS.values()), "all")):
            raise ValueError(f"{self.name}: split must be one of {', '.join(known)}, got {split!r}")
        rows = read_rows(self.root)
        used = [row for row in rows if split in ("all", SPLITS[row.fold])]
        if not used:
            raise ValueError(f"{self.name} has no patches of split {split}")
        folds = ", ".join(str(fold) for fold, of in SPLITS.items() if split in ("all", of))
        chosen = f"{len(used)} of {len(rows)} patches, those of the folds {folds} (split {split})"
        self.notes = (chosen, *orbit_notes(self._kinds, orbit))
        self._names = [row.id for row in used]
        self._patches = [self._open(row) for row in used]

    def __len__(self) -> int:
        return len(self._patches)

    def describe(self, place: int) -> str:
        """Return the number of the patch."""
        return self._names[place]

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Times]:
        """See :meth:`DatedSource.times`."""
        return self._patch(place).days({s: self._kinds[s] for s in sensors if s in self._kinds})

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        days = self.times(place, list(which))
        images = {sensor: self._image(place, sensor, index) for sensor, index in which.items()}
        dates = {s: days[s][[i]].astype("datetime64[D]").astype(np.int64) for s, i in which.items()}
        return validate_sample(images, {s: self.bands[s] for s in which}, frames=None, dates=dates)

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read all images of a patch in order of time, [T, C, H, W] by sensor, each of its own length.

        Raises:
            BadSample: the patch cannot be read, or a sensor has no usable image.
            ValueError: ``frame`` is given: the sensors have no common dates.
        """
        if frame is not None:
            raise ValueError(f"{self.name}: series have dates of their own for every sensor, and no frames")
        days = self.times(place, list(self.bands))
        orders = {s: np.argsort(each, kind="stable") for s, each in days.items()}
        images, valid = {}, {}
        for s, order in orders.items():
            images[s], valid[s] = stack_valid(s, [self._usable(place, s, i) for i in order.tolist()])
        return validate_sample(
            images,
            self.bands,
            frames={s: len(order) for s, order in orders.items()},
            dates={s: days[s][i].astype("datetime64[D]").astype(np.int64) for s, i in orders.items()},
            valid=valid,
        )

    def statistics(self) -> dict[str, dict[str, tuple[float, float]]]:
        """See :func:`fold_statistics`."""
        return fold_statistics(self.root, self._kinds)

    def _open(self, row: Row) -> Patch | str:
        try:
            return read_patch(self.root, row, self._kinds)
        except ValueError as error:
            return str(error)

    def _patch(self, place: int) -> Patch:
        if isinstance(patch := self._patches[place], str):
            raise BadSample(patch)
        return patch

    def _usable(self, place: int, sensor: str, index: int) -> npt.NDArray[Any] | None:
        try:
            return self._image(place, sensor, index)
        except EmptyImage:
            return None

    def _image(self, place: int, sensor: str, index: int) -> npt.NDArray[Any]:
        """Return an image of a patch, by its number in :meth:`times`."""
        patch = self._patch(place)
        for kind in self._kinds[sensor]:
            path, days = patch.series[kind]
            if index < len(days):
                break
            index -= len(days)
        try:
            array = load(path)
        except ValueError as error:
            raise BadSample(str(error)) from error
        if array.ndim != 4 or array.shape[1] != len(self.bands[sensor]):
            raise BadSample(f"{path} is {list(array.shape)}, expected [T, {len(self.bands[sensor])}, H, W]")
        image = np.array(array[index])
        if self._nodata is not None and (image == self._nodata).any():
            raise EmptyImage(f"{sensor} holds {self._nodata:g}, no data, on {days[index]}")
        return image


def load(path: Path) -> npt.NDArray[Any]:
    """Map an array into memory, so that sensors that are not used are not read."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not array.ndim:
        raise ValueError(f"{path} holds a single value, expected an array")
    return array


def _features(path: Path) -> list[Any]:
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    if not isinstance(features, list) or not features:
        raise ValueError(f"{path} holds no patches")
    return features


def _days(given: Any) -> Days:
    """Return the dates of the images, in the order of their numbers ("10" comes after "2")."""
    try:
        by_number = json.loads(given) if isinstance(given, str) else given
        numbered = {int(number): text for number, text in by_number.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"expected dates by number, {{'0': 20180917, ...}}, got {given!r}") from error
    if not numbered:
        raise ValueError("there are no dates")
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError(
            f"dates are numbered {', '.join(map(str, sorted(numbered)[:8]))}, ...; expected 0, 1, ..."
        )
    return np.array([_day(number, numbered[number]) for number in range(len(numbered))], "datetime64[D]")


def _day(number: int, given: Any) -> str:
    try:
        return datetime.strptime(str(given), "%Y%m%d").strftime("%Y-%m-%d")
    except ValueError as error:
        raise ValueError(f"date {number} is {given!r}, expected YYYYMMDD") from error


def fold_statistics(
    folder: Path, kinds: Mapping[str, Sequence[str]], patches: Sequence[str] | None = None
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mean and deviation of the bands: the average over the training folds, and over the orbits.

    ``patches``: those that train, where a user lists them; the average is over their folds.

    Raises:
        ValueError: a file is damaged. Sensors without one are left out.
    """
    folds = {fold for fold, split in SPLITS.items() if split == "train"}
    if patches is not None:
        folds = {row.fold for row in read_rows(folder) if row.id in set(patches)}
    found = {}
    for m, names in kinds.items():
        paths = [folder / f"NORM_{kind}_patch.json" for kind in names]
        if not all(path.is_file() for path in paths):
            continue
        rows = []
        for path in paths:
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
                rows += [[held[f"Fold_{fold}"][key] for key in ("mean", "std")] for fold in sorted(folds)]
                numbers = np.array(rows, np.float64).mean(axis=0)  # [2, C]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"cannot read {path}: {type(error).__name__}: {error}") from error
        if numbers.shape != (2, len(BANDS[m])) or not np.isfinite(numbers).all() or (numbers[1] <= 0).any():
            raise ValueError(
                f"{paths[0]}: expected mean and std of {len(BANDS[m])} bands, positive deviations, got "
                f"{list(numbers.shape)}"
            )
        found[m] = dict(zip(BANDS[m], map(tuple, numbers.T.tolist()), strict=True))
    return found
