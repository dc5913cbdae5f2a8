"""A labelled data set: images of one or more sensors, with labels and splits.

Readers (:mod:`rsbackbones.data.labelled`) return one; evaluation and fine-tuning take it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.sensors import Sensor, get_sensor

Array = npt.NDArray[Any]
# One class of an image; any number of them; one class of every pixel; change or none of every pixel.
Task = Literal["classes", "multilabel", "pixels", "change"]
SPLITS = ("train", "val", "test")
# The label of a pixel that counts nowhere.
IGNORED = -1
# By modality and band, (mean, standard deviation).
Statistics = Mapping[str, Mapping[str, tuple[float, float]]]
# What a sample holds beside its images.
BESIDE = ("label", "dates", "valid", "cloud")


@dataclass(frozen=True, kw_only=True)
class LabelledDataset:
    """Images and labels, read one at a time.

    Attributes:
        name: for tables.
        task: what a label is.
        classes: their names; K of them.
        bands: by modality (``s2``, ``s1``) the names of the channels, in the order of the images.
        units: by modality, as ``create_preprocess`` knows them, or ``"rgb8"``.
        sensors: by modality the sensor of its bands, where it is not the modality's own.
        ids: of every sample, unique.
        splits: the indices of the samples of ``train``, ``val`` and ``test``, as far as they exist.
        labels: ``classes``: [N] int64 below K; ``multilabel``: [N, K] bool; else ``None``: labels are maps.
        read: index -> by modality the raw image [C, H, W] (``change``: [2, C, H, W], the earlier date first),
            and under ``"label"`` the map [s H, s W] int64 of ``pixels`` and ``change``, -1 where it is
            ignored; s is 1, or more where labels are finer than images.
        pixel_m: the side of a pixel in meters, where files state it.
        series: whether samples are series, [T, C, H, W] by modality, of any T, which may differ between
            modalities. ``read`` then may also give ``"dates"``, by modality the dates [T] of its images (days
            since 1970-01-01, or datetime64); ``"valid"``, by modality booleans [T], False for missing images;
            and ``"cloud"``, booleans [T, H, W], True for cloudy pixels of the optical series. Images with NaN
            or without any value but 0 are missing as well.
        statistics: returns by modality and band the mean and standard deviation that the data come with, in
            DN and dB whatever ``units`` are; it may measure them, on the training samples. It may take the
            ids of these. ``None`` where they come with none.
        lacking: of series, by modality the samples that have no images of it.
        digest: a digest of images, labels, bands and units, not of the splits.
        notes: decisions of the reader that a user should know.
        masked: whether NaN marks pixels that do not count, as the user named a mask or a value without data.
            Otherwise NaN is an error.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    bands: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str] = field(default_factory=dict)
    sensors: Mapping[str, str] = field(default_factory=dict)
    ids: tuple[str, ...]
    splits: Mapping[str, npt.NDArray[np.int64]]
    labels: Array | None
    read: Callable[[int], dict[str, Any]]
    digest: str
    notes: tuple[str, ...] = ()
    series: bool = False
    statistics: Callable[..., Statistics] | None = None
    lacking: Mapping[str, frozenset[int]] = field(default_factory=dict)
    pixel_m: float | None = None
    masked: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def complete(self, modalities: Sequence[str]) -> "LabelledDataset":
        """Return the data set whose splits are of the samples that have these modalities, and a note.

        Raises:
            ValueError: a split has no such sample.
        """
        without = frozenset[int]().union(*(self.lacking.get(m, ()) for m in modalities))
        splits = {
            s: np.array([i for i in held if i not in without], np.int64) for s, held in self.splits.items()
        }
        named = " and ".join(dict.fromkeys(modalities))
        if empty := [s for s, held in splits.items() if not len(held) and len(self.splits[s])]:
            raise ValueError(
                f"{self.name}: no sample of the {' and '.join(empty)} split has images of {named}"
            )
        count = sum(map(len, self.splits.values()))
        if not (left := count - sum(map(len, splits.values()))):
            return self
        note = f"{left} of {count} samples are left out, which have no images of {named}"
        return replace(self, splits=splits, notes=(*self.notes, note))

    def sensor(self, modality: str) -> Sensor:
        """Return the sensor of the bands of a modality."""
        return get_sensor(self.sensors.get(modality, modality))


def label_scale(sample: Mapping[str, Any]) -> int:
    """Return how many pixels of its label map a sample has per image pixel, along each side.

    Raises:
        ValueError: it is no whole number, or not the same for both sides.
    """
    label = sample["label"]
    height, width = next(image for name, image in sample.items() if name not in BESIDE).shape[-2:]
    scale = int(label.shape[0] // height)
    if scale < 1 or label.shape != (height * scale, width * scale):
        raise ValueError(
            f"the label map has {' x '.join(map(str, label.shape))} pixels, the image {height} x {width}: "
            "expected as many, or a whole number of times as many along each side"
        )
    return scale
