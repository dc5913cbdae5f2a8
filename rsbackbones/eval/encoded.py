"""Features of a set with their labels, and the rows that are kept of them.

Patches. The paper's segmentation probes are linear on patch encodings, and only of its pictures does it say
what the label of a patch is: the most frequent class in it (appendix A.6). That is what a patch's label is
here, among the pixels that have one; of equally frequent classes the first. Patches without any label are
left out, so that sparsely labelled sets (MARIDA) train on what is labelled only. A probe that predicts one
class for a patch is still scored by pixels, exactly: ``pixels`` holds how many pixels of each class a patch
has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.dataset import IGNORED, Array, LabelledDataset
from rsbackbones.eval.samples import Samples

Level = Literal["image", "patch"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features of the samples of a set.

    Attributes:
        features: by stream [n, D] float32. Images: of all N samples of the set, NaN of those in no split.
            Patches: of the images in a split, row by row, image after image.
        labels: of images those of the set; of patches [n] int64, or [n, K] bool where the set is multi-label.
            ``None`` for images whose labels are maps.
        groups: [n] int64, the index of the image.
        pixels: of patches with label maps [n, K] int64: how many of its pixels are of each class.
        level: what a row is of.
        key: changes with the weights, the preprocessing and the data.
    """

    features: Mapping[str, Array]
    labels: Array | None
    groups: npt.NDArray[np.int64]
    pixels: Array | None
    level: Level
    key: str

    def stream(self, name: str) -> Array:
        """Return the features of a stream, or of several beside each other (``s1+s2+joint``), [n, D].

        Raises:
            ValueError: there is no such stream.
        """
        names = name.split("+")
        if unknown := [n for n in names if n not in self.features]:
            raise ValueError(
                f"there is no stream {', '.join(unknown)}; these features have {', '.join(self.features)}"
            )
        if len(names) == 1:
            return self.features[name]
        return np.concatenate([self.features[n] for n in names], axis=1)

    def rows(self, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of some images of the set, given by index."""
        if self.level == "image":
            return np.asarray(images, np.int64)
        return np.flatnonzero(np.isin(self.groups, images))

    def samples(self, features: Array, images: npt.NDArray[np.int64]) -> Samples:
        """Return the features, of :meth:`stream`, of some images beside their labels.

        Raises:
            ValueError: the labels are maps, and the features are of whole images.
        """
        if self.labels is None:
            raise ValueError("the labels of this set are maps: encode it with level='patch'")
        rows = self.rows(images)
        groups = self.groups[rows] if self.level == "patch" else None
        return Samples(
            features[rows], self.labels[rows], groups, None if self.pixels is None else self.pixels[rows]
        )


def encoded_rows(
    rows: Mapping[str, Array], images: npt.NDArray[np.int64], data: LabelledDataset, level: Level, key: str
) -> Encoded:
    """Return the features that the rows of some ``images`` of a set hold, with the set's labels."""
    streams = [name for name in rows if name != "pixels"]
    if level == "image":
        features = {}
        for s in streams:
            features[s] = np.full((len(data), *rows[s].shape[1:]), np.nan, np.float32)
            features[s][images] = rows[s]
        groups = np.arange(len(data))
        return Encoded(
            features=features, labels=data.labels, groups=groups, pixels=None, level=level, key=key
        )
    patches = rows[streams[0]].shape[1]
    groups = np.repeat(images, patches)
    features = {s: rows[s].reshape(len(groups), -1) for s in streams}
    if "pixels" not in rows:
        labels = None if data.labels is None else data.labels[groups]
        return Encoded(features=features, labels=labels, groups=groups, pixels=None, level=level, key=key)
    pixels = rows["pixels"].reshape(len(groups), -1).astype(np.int64)
    labelled = pixels.any(axis=1)
    pixels = pixels[labelled]
    return Encoded(
        features={s: x[labelled] for s, x in features.items()},
        labels=pixels.argmax(axis=1).astype(np.int64),
        groups=groups[labelled],
        pixels=pixels,
        level=level,
        key=key,
    )


def count_pixels(maps: Array, patch: int, classes: int) -> Array:
    """Count the pixels of every class in every patch: [B, H, W] to [B, n, K] int32."""
    below, right = (-side % patch for side in maps.shape[1:])
    maps = np.pad(maps, ((0, 0), (0, below), (0, right)), constant_values=IGNORED)
    images, height, width = maps.shape
    cells = maps.reshape(images, height // patch, patch, width // patch, patch).swapaxes(2, 3)
    cells = cells.reshape(images, -1, patch * patch)
    return np.stack([(cells == number).sum(-1) for number in range(classes)], axis=-1).astype(np.int32)
