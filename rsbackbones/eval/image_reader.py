"""Images of a labelled set in batches, checked: alike in size, without NaN; errors name the sample."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rsbackbones.data.crops import Size
from rsbackbones.data.labelled.dataset import Array, LabelledDataset, label_scale
from rsbackbones.preprocess import OffsetWarning


@dataclass
class ImageReader:
    """Reads batches, and checks that images are whole, and of one size where they must be ``alike``."""

    data: LabelledDataset
    modalities: Sequence[str]
    size: Size | None
    prepare: Callable[[Mapping[str, Array]], dict[str, Tensor]]
    alike: bool = True
    seen: Size | None = None
    bright: Counter[str] = field(default_factory=Counter)

    def __call__(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Array | None]:
        """Return by sensor [B, C, H, W], or [B, 2, C, H, W] of two dates, and [B, H, W] of label maps."""
        images: dict[str, list[Tensor]] = {m: [] for m in self.modalities}
        maps = []
        for index in indices:
            try:
                sample = self.data.read(index)
                self._check(sample)
                # One by one: what an image becomes does not depend on its neighbors.
                for m, x in self._prepared(sample).items():
                    images[m].append(x)
            except ValueError as error:
                name = self.data.ids[index]
                said = str(error).removeprefix(f"{name}: ")
                raise ValueError(f"{self.data.name}: {name}: {said}") from error
            if "label" in sample:
                label_scale(sample)
                height, width = sample[self.modalities[0]].shape[-2:]
                maps.append(_nearest(sample["label"], self.size or (height, width)))
        return {m: torch.stack(held) for m, held in images.items()}, np.stack(maps) if maps else None

    def _prepared(self, sample: Mapping[str, Array]) -> dict[str, Tensor]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", OffsetWarning)
            made = self.prepare(sample)
        for one in caught:
            if one.category is OffsetWarning:
                self.bright[str(one.message)] += 1
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        return made

    def warn_of_offsets(self, count: int) -> None:
        """Warn where none of ``count`` images has a dark pixel: that a single one has none says nothing."""
        for said, many in self.bright.items():
            if many == count:
                warnings.warn(
                    f"{self.data.name}, all images: {said}; in the command --units",
                    OffsetWarning,
                    stacklevel=2,
                )

    def _check(self, sample: Mapping[str, Array]) -> None:
        for m in self.modalities:
            image = sample[m]
            if image.dtype.kind == "f" and not np.isfinite(image).all():
                bad = ~np.isfinite(image).all(axis=tuple(range(image.ndim - 2)))
                raise ValueError(
                    f"{m} has NaN or infinity in {int(bad.sum())} of {bad.size} pixels; fill them, or leave "
                    "the sample out"
                )
            shape = (image.shape[-2], image.shape[-1])
            self.seen = self.seen or shape
            if self.alike and shape != self.seen and self.size is None:
                raise ValueError(
                    f"{m} has {shape[0]} x {shape[1]} pixels, others of the set have {self.seen[0]} x "
                    f"{self.seen[1]}; name one size for all, size= (--size)"
                )


def resized(x: Tensor, size: Size | None) -> Tensor:
    """Return [..., C, H, W] at a size, (height, width): bilinear, with antialiasing."""
    if size is None or x.shape[-2:] == size:
        return x
    flat = x.reshape(-1, *x.shape[-3:])
    fine: Tensor = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=True)
    return fine.reshape(*x.shape[:-2], *size)


def _nearest(labels: Array, size: Size) -> Array:
    """A label map to a size: the label under the center of every new pixel."""
    if labels.shape == size:
        return labels
    height, width = labels.shape
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64)
    resized: Array = labels[rows[:, None], columns]
    return resized
