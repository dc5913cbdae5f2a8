"""Features with their labels, a row per image or per patch: what encoding returns and protocols take.

Patches. The paper's segmentation probes are linear on patch encodings, and only of its pictures does it say
what the label of a patch is: the most frequent class in it (appendix A.6). That is what a patch's label is
here, among the pixels that have one; of equally frequent classes the first. Patches without any label are
left out, so that sparsely labelled sets (MARIDA) train on what is labelled only. A probe that predicts one
class for a patch is still scored by pixels, exactly: ``pixels`` holds how many pixels of each class a patch
has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.dataset import IGNORED, Array, LabelledDataset, Task
from rsbackbones.eval.predictions import Predictions

Granularity = Literal["image", "patch"]


@dataclass(frozen=True)
class FeatureTable:
    """Features and labels of a data set, or of some of its rows or streams.

    Attributes:
        features: [n, D] float; several streams are beside each other. NaN in images that are in no split.
        labels: [n] int64 below K, -1 where a row counts nowhere, as whole images whose labels are maps; or
            [n, K] bool, any number of classes each.
        groups: [n] int64, the image of each patch, by its index in the data set; ``None``: rows are images.
        pixels: [n, K] int64, the pixels of each class in a patch; ``None``: its label is that of the image.
        dims: the number of columns of each stream.
        key: a digest of the weights, the preprocessing and the data.
        warnings: by its text how many images earned a warning.
    """

    features: Array
    labels: Array
    groups: Array | None = None
    pixels: Array | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    key: str = ""
    warnings: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def task(self) -> Task:
        return "multilabel" if self.labels.ndim == 2 else "classes"

    def take(self, rows: Array) -> "FeatureTable":
        """Return those rows, by index or by mask."""
        groups, pixels = (None if x is None else x[rows] for x in (self.groups, self.pixels))
        features, labels = self.features[rows], self.labels[rows]
        return replace(self, features=features, labels=labels, groups=groups, pixels=pixels)

    def stream(self, name: str) -> "FeatureTable":
        """Return the features of a stream, or of several beside each other (``s1+s2+joint``).

        Raises:
            ValueError: there is no such stream.
        """
        names = name.split("+")
        if unknown := [n for n in names if n not in self.dims]:
            raise ValueError(
                f"there is no stream {', '.join(unknown)}; these features have {', '.join(self.dims)}"
            )
        ends = dict(zip(self.dims, accumulate(self.dims.values()), strict=True))
        columns = [self.features[:, ends[n] - self.dims[n] : ends[n]] for n in names]
        features = columns[0] if len(names) == 1 else np.concatenate(columns, axis=1)
        return replace(self, features=features, dims={n: self.dims[n] for n in names})

    def of_images(self, images: npt.NDArray[np.int64]) -> "FeatureTable":
        """Return the rows of some images, by their index in the data set; for the table of a whole data set.

        Raises:
            ValueError: the labels are maps, and the features are of whole images.
        """
        if self.groups is None and self.labels.ndim == 1 and (self.labels == IGNORED).all():
            raise ValueError("the labels of this set are maps: encode it with level='patch'")
        return self.take(images if self.groups is None else np.flatnonzero(np.isin(self.groups, images)))

    def predictions(self, scores: Array, details: Mapping[str, Any] | None = None) -> Predictions:
        """Return the scores [n, K] of these rows beside their labels."""
        return Predictions(
            scores=scores, target=self.labels, groups=self.groups, pixels=self.pixels, details=details or {}
        )


def build_table(
    rows: Mapping[str, Array],
    images: npt.NDArray[np.int64],
    data: LabelledDataset,
    level: Granularity,
    key: str,
) -> FeatureTable:
    """Return the features of some images of a data set beside its labels.

    Args:
        rows: by stream [images, D], or [images, patches, D], and of patches with label maps ``pixels``
            [images, patches, K].
        images: their indices in the data set.
        data, level, key: the data set, what a row is of, and the digest.
    """
    dims = {name: x.shape[-1] for name, x in rows.items() if name != "pixels"}
    features = np.concatenate([rows[name] for name in dims], axis=-1)
    labels = np.full(len(data), IGNORED) if data.labels is None else data.labels
    if level == "image":
        every = np.full((len(data), features.shape[-1]), np.nan, np.float32)
        every[images] = features
        return FeatureTable(every, labels, dims=dims, key=key)
    groups = np.repeat(images, features.shape[1])
    features = features.reshape(len(groups), features.shape[-1])
    if "pixels" not in rows:
        return FeatureTable(features, labels[groups], groups, dims=dims, key=key)
    pixels = rows["pixels"].reshape(len(groups), -1).astype(np.int64)
    labelled = np.asarray(pixels.any(axis=1))
    labels = pixels.argmax(axis=1).astype(np.int64)
    return FeatureTable(features, labels, groups, pixels, dims, key).take(labelled)


def count_pixels(maps: Array, patch: int, classes: int) -> Array:
    """Count the pixels of every class in every patch: [B, H, W] to [B, n, K] int32."""
    below, right = (-side % patch for side in maps.shape[1:])
    maps = np.pad(maps, ((0, 0), (0, below), (0, right)), constant_values=IGNORED)
    images, height, width = maps.shape
    cells = maps.reshape(images, height // patch, patch, width // patch, patch).swapaxes(2, 3)
    cells = cells.reshape(images, -1, patch * patch)
    return np.stack([(cells == number).sum(-1) for number in range(classes)], axis=-1).astype(np.int32)


def validate_table(split: str, samples: FeatureTable, classes: int) -> FeatureTable:
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
        return validate_table(split, replace(samples, labels=labels).take(labels != IGNORED), classes)
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


def validate_splits(
    train: FeatureTable, test: FeatureTable, classes: int
) -> tuple[FeatureTable, FeatureTable]:
    """Return both as :func:`validate_table` does, once they also fit each other.

    Raises:
        ValueError: as :func:`validate_table`; also where they differ in dimensions or in kind of labels, or
            where all training labels are of one class.
    """
    train, test = validate_table("train", train, classes), validate_table("test", test, classes)
    check_fit("test", test, train)
    varied = (train.labels != train.labels[0]).any()
    if not varied:
        what = "the same labels" if train.labels.ndim == 2 else f"the class {train.labels[0]}"
        raise ValueError(f"all {len(train)} training samples have {what}; at least two classes are needed")
    return train, test


def check_fit(split: str, samples: FeatureTable, train: FeatureTable) -> None:
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
