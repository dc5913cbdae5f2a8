"""PASTIS-R as published: series of Sentinel-1 and 2, and the crop of every pixel.

Garnot and Landrieu, "Panoptic Segmentation of Satellite Image Time Series with Convolutional Temporal
Attention Networks", ICCV 2021, and Garnot et al., "Multi-Modal Temporal Attention Models for Crop Mapping
from Satellite Time Series", ISPRS 2022. PASTIS, without radar, has the same layout.

- ``metadata.geojson``: of every patch ``ID_PATCH``, ``Fold``, and ``dates-S2``, ``dates-S1A``, ``dates-S1D``:
  an object, or its JSON text, from the number of an image to YYYYMMDD.
- ``DATA_S2/S2_ID.npy`` [T, 10, H, W], digital numbers; ``DATA_S1A/S1A_ID.npy`` of ascending and
  ``DATA_S1D/S1D_ID.npy`` of descending orbits, [T, 3, H, W]: VV, VH and VV - VH in dB.
- ``ANNOTATIONS/TARGET_ID.npy`` [3, H, W]: the first channel is the crop. 0 is the background, a class; 19 is
  void, and ignored.
- ``NORM_S2_patch.json`` and so on: mean and deviation of every band, by fold. Those of the training folds are
  averaged, as the authors do.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.labelled.build import build_dataset
from rsbackbones.data.labelled.classes import LabelCodes
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.labelled.missing import Missing
from rsbackbones.data.series import apart_in_time, warn_apart

Orbit = Literal["ascending", "descending", "both"]
_ORBITS = {"ascending": ("S1A",), "descending": ("S1D",), "both": ("S1A", "S1D")}
_BANDS = {
    "s2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    "s1": ("VV", "VH", "VV/VH"),
}
_UNITS = {"s2": "dn", "s1": "db"}
CLASSES = (
    "background", "meadow", "soft_winter_wheat", "corn", "winter_barley", "winter_rapeseed", "spring_barley",
    "sunflower", "grapevine", "beet", "winter_triticale", "winter_durum_wheat", "fruits_vegetables_flowers",
    "potatoes", "leguminous_fodder", "soybeans", "orchard", "mixed_cereal", "sorghum",
)  # fmt: skip
VOID = 19
# The folds that the authors train, validate and test on.
_SPLITS = {1: "train", 2: "train", 3: "train", 4: "val", 5: "test"}
METADATA = "metadata.geojson"

Days = npt.NDArray[Any]


def is_pastis(folder: Path) -> bool:
    """Return whether a folder is laid out as PASTIS."""
    return (folder / METADATA).is_file() and (folder / "ANNOTATIONS").is_dir()


def read_pastis(
    folder: Path, *, orbit: Orbit = "ascending", ignore: Sequence[int] = (), missing: Missing
) -> LabelledDataset:
    """Open PASTIS or PASTIS-R.

    Args:
        folder: of ``metadata.geojson``.
        orbit: of the radar images; those of ``both`` are one series, in order of time.
        ignore: labels that stand for none, beside void.
        missing: the value of pixels without data. An image that holds it is missing.

    Raises:
        ValueError: a file is missing or damaged, a date cannot be read, or their number is not that of the
            images. Patch and sensor are named.
    """
    if orbit not in _ORBITS:
        raise ValueError(f"orbit must be one of {', '.join(_ORBITS)}, got {orbit!r}")
    held = {"s2": ("S2",), "s1": _ORBITS[orbit]}
    folders = {m: names for m, names in held.items() if all((folder / f"DATA_{n}").is_dir() for n in names)}
    if not folders:
        raise ValueError(f"{folder} has neither DATA_S2 nor DATA_{' and DATA_'.join(held['s1'])}")
    patches = [_Patch.of(folder, feature, folders) for feature in _features(folder / METADATA)]
    notes = ["void is ignored; the background is a class"]
    if "s1" in folders:
        notes.append(f"Sentinel-1: {'both orbits' if orbit == 'both' else f'{orbit} orbits'}")
    apart = [patch.id for patch in patches if apart_in_time(patch.days(folders))]
    notes += warn_apart(folder.name, apart, len(patches))
    files = [InputFiles(plain=patch.paths) for patch in patches]
    return build_dataset(
        name=folder.name,
        task="pixels",
        bands={m: _BANDS[m] for m in folders},
        units={m: _UNITS[m] for m in folders},
        ids=[patch.id for patch in patches],
        codes=LabelCodes.of(CLASSES, (VOID, *ignore)),
        labels=None,
        splits=[_SPLITS[patch.fold] for patch in patches],
        read=_Reader(tuple(patches), folders),
        content=[InputFiles(plain=[folder / METADATA]).facts, orbit, [each.facts for each in files]],
        files=files,
        notes=notes,
        pixel_m=10.0,
        missing=missing,
        unmarked=True,
        series=True,
        statistics=partial(_statistics, folder, folders),
    )


@dataclass(frozen=True)
class _Patch:
    """A patch: by folder (``S2``, ``S1A``) the path of its series and the dates of its images."""

    id: str
    fold: int
    series: Mapping[str, tuple[Path, Days]]
    label: Path

    @staticmethod
    def of(folder: Path, feature: Any, folders: Mapping[str, Sequence[str]]) -> "_Patch":
        try:
            properties = feature["properties"]
            name, fold = str(properties["ID_PATCH"]), int(properties["Fold"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / METADATA}: a patch needs the properties ID_PATCH and Fold: {error!r}"
            ) from error
        if fold not in _SPLITS:
            raise ValueError(f"{folder.name}: {name}: Fold must be one of 1 to 5, got {fold}")
        series = {}
        for kind in (kind for kinds in folders.values() for kind in kinds):
            path = folder / f"DATA_{kind}" / f"{kind}_{name}.npy"
            try:
                days, images = _days(properties.get(f"dates-{kind}")), len(_load(path))
                if len(days) != images:
                    raise ValueError(f"{len(days)} dates and {images} images")
            except ValueError as error:
                raise ValueError(f"{folder.name}: {name}: {kind}: {error}") from error
            series[kind] = path, days
        label = folder / "ANNOTATIONS" / f"TARGET_{name}.npy"
        if not label.is_file():
            raise ValueError(f"{folder.name}: {name}: there is no {label}")
        return _Patch(name, fold, series, label)

    @property
    def paths(self) -> list[Path]:
        return [*(path for path, _ in self.series.values()), self.label]

    def days(self, folders: Mapping[str, Sequence[str]]) -> dict[str, Days]:
        return {m: np.concatenate([self.series[k][1] for k in kinds]) for m, kinds in folders.items()}


@dataclass(frozen=True)
class _Reader:
    """Reads a patch by its number; travels to the workers of a loader by pickle."""

    patches: tuple[_Patch, ...]
    folders: Mapping[str, Sequence[str]]

    def __call__(self, index: int) -> dict[str, Any]:
        patch = self.patches[index]
        images = {}
        for m, kinds in self.folders.items():
            parts = [_load(patch.series[kind][0]) for kind in kinds]
            images[m] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        label = _load(patch.label)
        return {**images, "dates": patch.days(self.folders), "label": label[0] if label.ndim == 3 else label}


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


def _load(path: Path) -> npt.NDArray[Any]:
    """Map an array into memory, so that sensors that are not used are not read."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not array.ndim:
        raise ValueError(f"{path} holds a single value, expected an array")
    return array


def _statistics(
    folder: Path, folders: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mean and deviation of the bands: the average over the training folds, and over the orbits."""
    found = {}
    for m, kinds in folders.items():
        paths = [folder / f"NORM_{kind}_patch.json" for kind in kinds]
        if not all(path.is_file() for path in paths):
            continue
        rows = []
        for path in paths:
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
                rows += [
                    [held[f"Fold_{fold}"][name] for name in ("mean", "std")]
                    for fold, split in _SPLITS.items()
                    if split == "train"
                ]
                numbers = np.array(rows, np.float64).mean(axis=0)  # [2, C]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"cannot read {path}: {type(error).__name__}: {error}") from error
        if numbers.shape != (2, len(_BANDS[m])) or not np.isfinite(numbers).all() or (numbers[1] <= 0).any():
            raise ValueError(
                f"{paths[0]}: expected mean and std of {len(_BANDS[m])} bands, positive deviations, got "
                f"{list(numbers.shape)}"
            )
        found[m] = dict(zip(_BANDS[m], map(tuple, numbers.T.tolist()), strict=True))
    return found
