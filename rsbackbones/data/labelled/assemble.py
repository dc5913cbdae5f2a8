"""From what a reader found in files to a labelled set, checked."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.classes import LabelCodes
from rsbackbones.data.labelled.dataset import IGNORED, Array, LabelledSet, Task, label_scale
from rsbackbones.data.labelled.splits import Lists, choose_splits
from rsbackbones.sensors import get_sensor

Sensors = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader found.

    Attributes:
        name, task, notes: those of the set.
        bands, units: by modality, or by sensor where the files name that; ``bands`` in any spelling.
        ids: of every sample.
        codes: the classes.
        labels: for ``classes`` a name or number each, for ``multilabel`` [N, K] of 0 and 1, else ``None``.
        own: the split of every sample in the reader's words, or ``None`` where the set has none.
        read: index -> raw arrays by sensor, and ``"label"`` as the file holds it.
        content: what changes when the files do.
    """

    name: str
    task: Task
    bands: Mapping[str, Sequence[str]]
    units: Mapping[str, str] = field(default_factory=dict)
    ids: Sequence[str]
    codes: LabelCodes
    labels: Sequence[int | str] | Array | None = None
    own: Sequence[str | None] | None = None
    read: Callable[[int], dict[str, Array]]
    content: Any
    notes: Sequence[str] = ()


def assemble(
    found: Found,
    *,
    sensors: Sensors | None = None,
    lists: Lists | None = None,
    subset: float | None = None,
    seed: int = 0,
) -> LabelledSet:
    """Return the set; for ``lists``, ``subset`` and ``seed`` see :func:`choose_splits`.

    ``sensors`` says by modality which sensor its images are of. They are those that the files name after
    that sensor; where there are none, those that they name after the modality.

    Raises:
        ValueError: no samples, ids twice, an unknown band, labels out of range or of one class, or as
            :func:`choose_splits`.
    """
    if not found.ids:
        raise ValueError(f"{found.name} holds no samples")
    if twice := [name for name, count in Counter(found.ids).items() if count > 1]:
        raise ValueError(f"{found.name}: {len(twice)} ids name several samples: {', '.join(twice[:5])}")
    sensors = dict(sensors or {})
    keys = _keys(found, sensors)
    bands = {m: get_sensor(sensors.get(m, m)).canonical(found.bands[key]) for m, key in keys.items()}
    if wrong := [m for m in found.units if m not in keys and m not in found.bands]:
        raise ValueError(f"{found.name}: units of {', '.join(wrong)}; the images are of {', '.join(bands)}")
    # Units by modality are those of its images, unless the files have others of that name.
    named = {m: m if m in found.units and m not in found.bands else key for m, key in keys.items()}
    units = {m: found.units[name] for m, name in named.items() if name in found.units}
    notes = list(found.notes)
    if rest := [key for key in found.bands if key not in keys.values()]:
        notes.append(f"not used: images of {', '.join(rest)}")
    kept = np.arange(len(found.ids))
    labels = _labels(found)
    if labels is not None and labels.ndim == 1 and (labels == IGNORED).any():
        outside = int((labels == IGNORED).sum())
        notes.append(f"{outside} samples left out, whose labels are none of the classes")
        kept = np.flatnonzero(labels != IGNORED)
    ids = tuple(found.ids[i] for i in kept.tolist())
    labels = None if labels is None else labels[kept]
    classes = labels if labels is not None and labels.ndim == 1 else None
    if classes is not None and len(np.unique(classes)) < 2:
        only = ", ".join(found.codes.names[i] for i in np.unique(classes))
        raise ValueError(f"{found.name}: all samples are of one class: {only}; two are needed")
    try:
        splits, chosen = choose_splits(
            ids,
            None if classes is None else classes.tolist(),
            None if found.own is None else [found.own[i] for i in kept.tolist()],
            lists=lists, subset=subset, seed=seed,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{found.name}: {error}") from error
    if classes is not None and len(np.unique(classes[splits["train"]])) < 2:
        raise ValueError(
            f"{found.name}: all {len(splits['train'])} training samples are of one class; take more of them"
        )
    return LabelledSet(
        name=found.name,
        task=found.task,
        classes=found.codes.names,
        bands=bands,
        units=units,
        sensors=sensors,
        ids=ids,
        splits=splits,
        labels=labels,
        read=_CheckedRead(found.read, kept, ids, bands, keys, found.codes, found.task),
        digest=_digest(found, bands, units, sensors, ids, labels),
        notes=(*notes, *chosen),
    )


def _keys(found: Found, sensors: Sensors) -> dict[str, str]:
    """Return by modality under which name the files hold its images."""
    held = found.bands
    keys = {m: sensor if sensor in held else m for m, sensor in sensors.items()}
    if lacking := [m for m, key in keys.items() if key not in held]:
        raise ValueError(
            f"sensors= (--sensors {lacking[0]}={sensors[lacking[0]]}) takes images that the files name "
            f"{sensors[lacking[0]]}, or {lacking[0]}; {found.name} has {', '.join(held)}"
        )
    return {m: m for m in held if m not in keys and m not in keys.values()} | keys


def _labels(found: Found) -> Array | None:
    if found.task not in ("classes", "multilabel"):
        return None
    assert found.labels is not None
    if len(found.labels) != len(found.ids):
        raise ValueError(f"{found.name}: {len(found.labels)} labels of {len(found.ids)} samples")
    if found.task == "classes":
        numbers = []
        for name, label in zip(found.ids, found.labels, strict=True):
            try:
                numbers.append(found.codes.number(label))
            except ValueError as error:
                raise ValueError(f"{found.name}: {name}: {error}") from error
        return np.array(numbers, np.int64)
    several = np.asarray(found.labels)
    if several.ndim != 2 or several.shape[1] != len(found.codes.names) or not np.isin(several, (0, 1)).all():
        raise ValueError(
            f"{found.name}: labels of several classes are 0 and 1, [N, {len(found.codes.names)}], got "
            f"{list(several.shape)} from {several.min()} to {several.max()}"
        )
    return several.astype(bool)


@dataclass(frozen=True)
class _CheckedRead:
    """Reads a sample, as raw arrays of the set's bands; travels to the workers of a loader by pickle."""

    source: Callable[[int], dict[str, Array]]
    kept: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    bands: Mapping[str, tuple[str, ...]]
    keys: Mapping[str, str]
    codes: LabelCodes
    task: Task

    def __call__(self, index: int) -> dict[str, Array]:
        try:
            return self._read(self.source(int(self.kept[index])))
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.ids[index]}: {error}") from error

    def _read(self, sample: dict[str, Array]) -> dict[str, Array]:
        dates = 1 if self.task == "change" else 0
        images = {m: sample[self.keys[m]] for m in self.bands}
        for m, image in images.items():
            if image.ndim != 3 + dates or image.shape[-3] != len(self.bands[m]):
                layout = "[2, C, H, W]" if dates else "[C, H, W]"
                named = ", ".join(self.bands[m])
                raise ValueError(f"{m}: expected {layout} with the bands {named}, got {list(image.shape)}")
        if self.task not in ("pixels", "change"):
            return images
        label = sample["label"]
        label_scale({**images, "label": label})
        classes = self.codes.map(label)
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


def _digest(
    found: Found,
    bands: Mapping[str, tuple[str, ...]],
    units: Mapping[str, str],
    sensors: Sensors,
    ids: Sequence[str],
    labels: Array | None,
) -> str:
    said = {
        "task": found.task,
        "classes": found.codes.names,
        "codes": None
        if found.codes.codes is None
        else sorted((str(k), v) for k, v in found.codes.codes.items()),
        "ignored": found.codes.ignored,
        "bands": bands,
        "units": units,
        "ids": ids,
        "content": found.content,
        **({"sensors": sensors} if sensors else {}),
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    if labels is not None:
        digest.update(np.ascontiguousarray(labels).tobytes())
    return digest.hexdigest()
