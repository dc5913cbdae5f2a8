"""Crops of the images of a labelled data set: other sizes at the same ground resolution."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.dataset import BESIDE, IGNORED, LabelledDataset, label_scale

Size = tuple[int, int]
# Crops of one image are often read one after the other.
_KEPT_IMAGES = 16


def cropped(
    data: LabelledDataset, size: int | Size, *, splits: Sequence[str] | None = None
) -> LabelledDataset:
    """Return a data set of crops: of every image the largest centered grid of whole crops.

    Args:
        data: images may be of any sizes; all are read once for them. A crop has its image's label, or its
            part of the label map.
        size: of the crops in pixels, or (height, width).
        splits: those to crop; default all.

    Raises:
        ValueError: an image is smaller than a crop, or the set lacks a split.
    """
    height, width = pair(size)
    if height < 1 or width < 1:
        raise ValueError(f"crops need at least one pixel, got {height} x {width}")
    places: list[tuple[int, int, int]] = []
    found = {}
    for split in data.splits if splits is None else splits:
        if not len(data.splits.get(split, ())):
            raise ValueError(f"{data.name} has no images in {split!r}; its splits: {', '.join(data.splits)}")
        first = len(places)
        for image in data.splits[split].tolist():
            rows, columns = data.read(image)[next(iter(data.bands))].shape[-2:]
            down, right = rows // height, columns // width
            if not down * right:
                raise ValueError(
                    f"{data.name}: {data.ids[image]} of {rows} x {columns} pixels has no crop of {height} x "
                    f"{width}; choose sizes that fit (--sizes and --train-size), or leave out smaller images"
                )
            top, left = (rows - down * height) // 2, (columns - right * width) // 2
            places += [(image, top + i * height, left + j * width) for i in range(down) for j in range(right)]
        found[split] = np.arange(first, len(places))
    chosen = np.array(places, dtype=np.int64).reshape(-1, 3)
    described = f"{data.digest} {height} x {width} {places}"
    return replace(
        data,
        name=f"{data.name}, {name_of((height, width))} px",
        ids=tuple(f"{data.ids[image]} [{row}, {column}]" for image, row, column in places),
        splits=found,
        labels=None if data.labels is None else data.labels[chosen[:, 0]],
        read=Crops(data.read, (height, width), chosen),
        digest=hashlib.sha256(described.encode()).hexdigest(),
        notes=(*data.notes, f"crops of {name_of((height, width))} pixels, without overlap"),
    )


class Crops:
    """Reads crops. Where one reaches beyond its image, the last pixels are repeated and have no label.

    Attributes:
        size: of a crop, (height, width).
        places: of every crop the image, the first row and the first column, [N, 3].
    """

    def __init__(
        self, read: Callable[[int], dict[str, Any]], size: Size, places: npt.NDArray[np.int64]
    ) -> None:
        self.size, self.places = size, places
        self._read = read
        self._read_image = lru_cache(_KEPT_IMAGES)(read)

    def __call__(self, index: int) -> dict[str, Any]:
        image, row, column = self.places[index].tolist()
        sample = self._read_image(image)
        height, width = self.size
        grid = next(x.shape[-2:] for name, x in sample.items() if name not in BESIDE)
        crop = {}
        for name, array in sample.items():
            if isinstance(array, Mapping):  # the dates of a series, and which of its images are missing
                crop[name] = array
                continue
            s = label_scale(sample) if name == "label" else 1
            if name != "label" and array.shape[-2:] != grid:
                raise ValueError(
                    f"{name} is {array.shape[-2]} x {array.shape[-1]} pixels, another image of the sample "
                    f"{grid[0]} x {grid[1]}; crops need one grid"
                )
            part = array[..., row * s : (row + height) * s, column * s : (column + width) * s]
            if part.shape[-2:] != (height * s, width * s):
                beyond = ((0, height * s - part.shape[-2]), (0, width * s - part.shape[-1]))
                margin = (*[(0, 0)] * (part.ndim - 2), *beyond)
                part = (
                    np.pad(part, margin, constant_values=IGNORED)
                    if name == "label"
                    else np.pad(part, margin, mode="edge")
                )
            crop[name] = part
        return crop

    def __reduce__(self) -> tuple[Any, ...]:
        return Crops, (self._read, self.size, self.places)


def pair(size: int | Size) -> Size:
    """Return (height, width)."""
    return (size, size) if isinstance(size, int) else size


def name_of(size: Size) -> str:
    """Return a size as text, ``120`` or ``96 x 480``."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"
