"""From what a reader found in files to a labelled data set, checked."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.labelled.classes import LabelCodes
from rsbackbones.data.labelled.dataset import IGNORED, Array, LabelledDataset, Statistics, Task, label_scale
from rsbackbones.data.labelled.missing import NOTHING, Missing
from rsbackbones.data.labelled.splits import stated_splits
from rsbackbones.data.series import order_series
from rsbackbones.sensors import get_sensor

Sensors = Mapping[str, str]
NONE_LACKING: Mapping[str, Sequence[int]] = MappingProxyType({})


def build_dataset(
    *,
    name: str,
    task: Task,
    bands: Mapping[str, Sequence[str]],
    units: Mapping[str, str],
    sensors: Sensors | None = None,
    ids: Sequence[str],
    codes: LabelCodes,
    labels: Sequence[int | str] | Array | None,
    splits: Sequence[str | None] | None,
    read: Callable[[int], dict[str, Any]],
    content: Any,
    files: Sequence[InputFiles],
    notes: Sequence[str] = (),
    pixel_m: float | None = None,
    missing: Missing = NOTHING,
    unmarked: bool = False,
    series: bool = False,
    lacking: Mapping[str, Sequence[int]] = NONE_LACKING,
    statistics: Callable[[Sequence[str] | None], Statistics] | None = None,
) -> LabelledDataset:
    """Check what a reader found and return the data set, with the splits that its files state.

    Args:
        name, task: those of the data set.
        bands: the bands of the images in any spelling, by modality, or by the sensor that the files name.
        units: by modality or sensor.
        sensors: by modality the sensor of its images, where it is not the modality's own. Its images are
            those that the files name after that sensor, or else after the modality.
        ids: of every sample.
        codes: the classes.
        labels: of the task ``classes`` a name or number for each sample, of ``multilabel`` [N, K] of 0 and 1;
            else ``None``.
        splits: the split of every sample in the words of the files; ``None`` where they state none.
        read: index -> raw arrays by the keys of ``bands``, and ``"label"`` as the file holds it.
        content: changes when the files do.
        files: those of each sample, or one for all. They are checked whenever a sample is read, so that the
            sample is of the files that ``content`` is of.
        notes: what a user should read beside the numbers.
        pixel_m: the side of a pixel in meters, where files state it.
        missing: which pixels do not count.
        unmarked: ``read`` gives the value without data as it is, not NaN.
        series: ``read`` gives series [T, C, H, W], which are put in order of time (:func:`order_series`).
        lacking: of series, by key of ``bands`` the numbers of the samples that have no images of it.
        statistics: returns by key of ``bands`` and by band the mean and deviation that the data come with, of
            the training samples of its own splits, or of those with these ids.

    Raises:
        ValueError: no samples, duplicate ids, an unknown band or split, or labels out of range or of one
            class.
    """
    if not ids:
        raise ValueError(f"{name} holds no samples")
    if twice := [one for one, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{name}: {len(twice)} ids name several samples: {', '.join(twice[:5])}")
    sensors, notes = dict(sensors or {}), list(notes)
    keys = _keys(name, bands, sensors)
    of = {m: get_sensor(sensors.get(m, m)).canonical(bands[key]) for m, key in keys.items()}
    if wrong := [m for m in units if m not in keys and m not in bands]:
        raise ValueError(f"{name}: units of {', '.join(wrong)}; the images are of {', '.join(of)}")
    # Units by modality are those of its images, unless the files have others of that name.
    named = {m: m if m in units and m not in bands else key for m, key in keys.items()}
    units = {m: units[unit] for m, unit in named.items() if unit in units}
    if rest := [key for key in bands if key not in keys.values()]:
        notes.append(f"not used: images of {', '.join(rest)}")
    kept = np.arange(len(ids))
    numbers = _labels(name, task, ids, codes, labels)
    if numbers is not None and numbers.ndim == 1 and (numbers == IGNORED).any():
        notes.append(f"{(numbers == IGNORED).sum()} samples left out, whose labels are none of the classes")
        kept = np.flatnonzero(numbers != IGNORED)
    ids = tuple(ids[i] for i in kept.tolist())
    numbers = None if numbers is None else numbers[kept]
    if numbers is not None and numbers.ndim == 1 and len(np.unique(numbers)) < 2:
        only = ", ".join(codes.names[i] for i in np.unique(numbers))
        raise ValueError(f"{name}: all samples are of one class: {only}; two are needed")
    try:
        stated = stated_splits(ids, None if splits is None else [splits[i] for i in kept.tolist()])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    described = {
        "task": task,
        "classes": codes.names,
        "codes": None if codes.codes is None else sorted((str(k), v) for k, v in codes.codes.items()),
        "ignored": codes.ignored,
        "bands": of,
        "units": units,
        "ids": ids,
        "content": content,
        **({"sensors": sensors} if sensors else {}),
        **({"missing": missing.facts} if missing else {}),
    }
    if missing:
        notes.append(f"pixels that do not count: {missing}")
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    if numbers is not None:
        digest.update(np.ascontiguousarray(numbers).tobytes())
    return LabelledDataset(
        name=name,
        task=task,
        classes=codes.names,
        bands=of,
        units=units,
        sensors=sensors,
        ids=ids,
        splits=stated,
        labels=numbers,
        read=_CheckedRead(
            read, kept, ids, of, keys, codes, task, tuple(files), missing.nodata if unmarked else None, series
        ),
        digest=digest.hexdigest(),
        notes=tuple(notes),
        pixel_m=pixel_m,
        masked=bool(missing),
        series=series,
        lacking={m: frozenset(lacking[key]) for m, key in keys.items() if key in lacking},
        statistics=None if statistics is None else partial(_renamed, statistics, keys),
    )


def _renamed(
    statistics: Callable[[Sequence[str] | None], Statistics],
    keys: Mapping[str, str],
    ids: Sequence[str] | None = None,
) -> Statistics:
    held = statistics(ids)
    return {m: held[key] for m, key in keys.items() if key in held}


def _keys(name: str, held: Mapping[str, Sequence[str]], sensors: Sensors) -> dict[str, str]:
    """Return by modality the key under which the files hold its images."""
    keys = {m: sensor if sensor in held else m for m, sensor in sensors.items()}
    if lacking := [m for m, key in keys.items() if key not in held]:
        raise ValueError(
            f"sensors= (--sensors {lacking[0]}={sensors[lacking[0]]}) takes images that the files name "
            f"{sensors[lacking[0]]}, or {lacking[0]}; {name} has {', '.join(held)}"
        )
    return {m: m for m in held if m not in keys and m not in keys.values()} | keys


def _labels(
    name: str,
    task: Task,
    ids: Sequence[str],
    codes: LabelCodes,
    labels: Sequence[int | str] | Array | None,
) -> Array | None:
    if task not in ("classes", "multilabel"):
        return None
    assert labels is not None
    if len(labels) != len(ids):
        raise ValueError(f"{name}: {len(labels)} labels of {len(ids)} samples")
    if task == "classes":
        numbers = []
        for sample, label in zip(ids, labels, strict=True):
            try:
                numbers.append(codes.number(label))
            except ValueError as error:
                raise ValueError(f"{name}: {sample}: {error}") from error
        return np.array(numbers, np.int64)
    several = np.asarray(labels)
    if several.ndim != 2 or several.shape[1] != len(codes.names) or not np.isin(several, (0, 1)).all():
        raise ValueError(
            f"{name}: labels of several classes are 0 and 1, [N, {len(codes.names)}], got "
            f"{list(several.shape)} from {several.min()} to {several.max()}"
        )
    return several.astype(bool)


@dataclass(frozen=True)
class _CheckedRead:
    """Reads a sample, as raw arrays of the set's bands; travels to the workers of a loader by pickle."""

    source: Callable[[int], dict[str, Any]]
    kept: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    bands: Mapping[str, tuple[str, ...]]
    keys: Mapping[str, str]
    codes: LabelCodes
    task: Task
    files: tuple[InputFiles, ...]
    nodata: float | None = None
    series: bool = False

    def __call__(self, index: int) -> dict[str, Any]:
        try:
            number = int(self.kept[index])
            sample = self._read(self.source(number))
            self.files[number if len(self.files) > 1 else 0].check()
            return sample
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.ids[index]}: {error}") from error

    def _read(self, sample: dict[str, Any]) -> dict[str, Any]:
        layout = "[T, C, H, W]" if self.series else "[2, C, H, W]" if self.task == "change" else "[C, H, W]"
        # A place of a set of series may lack a sensor.
        images = {m: sample[k] for m, k in self.keys.items() if not self.series or k in sample}
        for m, image in images.items():
            if image.ndim != layout.count(",") + 1 or image.shape[-3] != len(self.bands[m]):
                named = ", ".join(self.bands[m])
                raise ValueError(f"{m}: expected {layout} with the bands {named}, got {list(image.shape)}")
            if self.nodata is not None:
                held = image == np.asarray(self.nodata).astype(image.dtype)
                images[m] = np.where(held.any(-3, keepdims=True), np.float32(np.nan), image)
        if self.series:
            given = {
                m: sample["dates"][key] for m, key in self.keys.items() if key in sample.get("dates", {})
            }
            images = order_series(images, given, sample.get("cloud"))
        if self.task not in ("pixels", "change"):
            return images
        label = sample["label"]
        label_scale({**images, "label": label})
        classes = self.codes.map(label)
        if self.series:  # images with holes are missing
            return {**images, "label": classes}
        for m, image in images.items():
            images[m] = _without_holes(image, classes)
        return {**images, "label": classes}


def _without_holes(image: Array, classes: Array) -> Array:
    """Fill pixels without data (NaN) by their band's mean, and ignore their labels.

    Radar scenes end in them, and one such pixel would otherwise cost a whole label map.
    """
    if image.dtype.kind != "f" or np.isfinite(image).all():
        return image
    if not np.isfinite(image).any(axis=(-2, -1)).all():
        raise ValueError("a band holds NaN only; leave the sample out")
    missing = ~np.isfinite(image)
    holes = missing.any(axis=tuple(range(image.ndim - 2)))
    finer = classes.shape[0] // holes.shape[0]
    classes[holes.repeat(finer, axis=0).repeat(finer, axis=1)] = IGNORED
    known = np.where(missing, np.nan, image.astype(np.float32))
    return np.where(missing, np.nanmean(known, axis=(-2, -1), keepdims=True), known)
