"""The features of a split beside their labels: what every protocol over frozen features takes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rsbackbones.data.labelled.dataset import IGNORED, Array, Task
from rsbackbones.eval.outcome import Outcome


@dataclass(frozen=True)
class Samples:
    """Of one split: images, or patches of images.

    Attributes:
        features: [n, D] float.
        labels: [n] int64 below K, -1 where a sample counts nowhere; or [n, K] bool, any number of classes
            each.
        groups: [n] int64, the image of a patch; ``None``: samples are images.
        pixels: [n, K] int64, the pixels of each class in a patch; ``None``: its label is that of the image.
    """

    features: Array
    labels: Array
    groups: Array | None = None
    pixels: Array | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def task(self) -> Task:
        return "multilabel" if self.labels.ndim == 2 else "classes"

    def take(self, rows: Array) -> "Samples":
        """Return those rows, by index or by mask."""
        groups = None if self.groups is None else self.groups[rows]
        pixels = None if self.pixels is None else self.pixels[rows]
        return Samples(self.features[rows], self.labels[rows], groups, pixels)

    def outcome(self, scores: Array, details: Mapping[str, Any] | None = None) -> Outcome:
        """Return the scores [n, K] of these samples beside their labels."""
        return Outcome(
            scores=scores, target=self.labels, groups=self.groups, pixels=self.pixels, details=details or {}
        )


def checked(split: str, samples: Samples, classes: int) -> Samples:
    """Return the samples that count, their features float32, once all is well with them.

    Raises:
        ValueError: there are none, a feature is NaN or infinite, a label is no class, or shapes do not fit.
    """
    features, labels, groups = samples.features, np.asarray(samples.labels), samples.groups
    if features.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(features):
        raise ValueError(
            f"{split}: features {list(features.shape)}, labels {list(labels.shape)}; expected [n, D] beside "
            "[n], or [n, K] of samples with several labels"
        )
    if groups is not None and groups.shape != labels.shape[:1]:
        raise ValueError(
            f"{split}: groups {list(groups.shape)} of {len(labels)} samples; expected one for each"
        )
    if labels.ndim == 1 and (labels == IGNORED).any():
        return checked(split, replace(samples, labels=labels).take(labels != IGNORED), classes)
    if not len(labels):
        raise ValueError(f"the {split} split holds no labelled sample")
    if labels.ndim == 2 and (labels.shape[1] != classes or not np.isin(labels, (0, 1)).all()):
        raise ValueError(f"{split}: labels {list(labels.shape)}; expected 0 and 1, [n, {classes}]")
    if labels.ndim == 1 and (
        labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < classes
    ):
        raise ValueError(
            f"{split}: {labels.dtype} labels from {labels.min()} to {labels.max()}; with {classes} classes "
            f"they are integers from 0 to {classes - 1}, or {IGNORED} where one is to be ignored"
        )
    if len(broken := np.flatnonzero(~np.isfinite(features).all(axis=1))):
        raise ValueError(
            f"{split}: {len(broken)} of {len(features)} samples have NaN or infinity among their features, "
            f"the first is number {broken[0]}"
        )
    labels = labels.astype(bool if labels.ndim == 2 else np.int64)
    return replace(samples, features=np.ascontiguousarray(features, np.float32), labels=labels)


def checked_splits(train: Samples, test: Samples, classes: int) -> tuple[Samples, Samples]:
    """Return both as :func:`checked` does, once they also fit each other.

    Raises:
        ValueError: as :func:`checked`; also where they differ in dimensions or in kind of labels, or where
            the training labels hold one class only, of which nothing can be learned.
    """
    train, test = checked("train", train, classes), checked("test", test, classes)
    fits("test", test, train)
    varied = (train.labels != train.labels[0]).any()
    if not varied:
        what = "the same labels" if train.labels.ndim == 2 else f"the class {train.labels[0]}"
        raise ValueError(f"all {len(train)} training samples have {what}; at least two classes are needed")
    return train, test


def fits(split: str, samples: Samples, train: Samples) -> None:
    """Check that a split has the dimensions and the kind of labels that the training samples have.

    Raises:
        ValueError: it has not.
    """
    if samples.features.shape[1] != train.features.shape[1]:
        raise ValueError(
            f"features of {samples.features.shape[1]} dimensions ({split}) and {train.features.shape[1]} "
            "(train): both must come from the same model and streams"
        )
    if samples.labels.ndim != train.labels.ndim:
        raise ValueError(
            f"one label per sample in {'train' if train.labels.ndim == 1 else split}, several elsewhere"
        )
