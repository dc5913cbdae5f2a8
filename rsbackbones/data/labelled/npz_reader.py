"""Labelled samples in ``.npz`` files, read one at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rsbackbones.data.grid import same_extent, to_grid
from rsbackbones.data.npz_archive import Array, NpzArchive

# The arrays of one sensor, with the bands of their channels.
BandArrays = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class NpzReader:
    """Reads a sample by its number.

    Attributes:
        files: the archives.
        counts: how many samples each has; ``None`` for one sample without an axis for it.
        images: by sensor its arrays; of two dates, those of each date where they are separate arrays.
        label: the array of label maps; ``None`` where labels are not maps.
    """

    files: Sequence[NpzArchive]
    counts: Sequence[int | None]
    images: Mapping[str, Sequence[BandArrays]]
    label: str | None

    def __call__(self, index: int) -> dict[str, Array]:
        ends = np.cumsum([0, *(count or 1 for count in self.counts)]).tolist()
        number = next(n for n, (low, high) in enumerate(pairwise(ends)) if low <= index < high)
        file, row = self.files[number], None if self.counts[number] is None else index - ends[number]

        def read(name: str) -> Array:
            # A copy: callers may change it.
            return (file.read(name) if row is None else file.read(name)[row]).copy()

        sample = {}
        for sensor, sides in self.images.items():
            dates = [_joined([read(name) for name in arrays]) for arrays in sides]
            sample[sensor] = dates[0] if len(dates) == 1 else np.stack(dates)
        if self.label is not None:
            label = read(self.label)
            sample["label"] = label.reshape(label.shape[-2:])  # [1, H, W] is accepted too
        return sample


def _joined(arrays: Sequence[Array]) -> Array:
    """Concatenate the channels of arrays on the finest of their grids."""
    height, width = max(array.shape[-2:] for array in arrays)
    if not all(same_extent((height, width), (array.shape[-2], array.shape[-1])) for array in arrays):
        raise ValueError(
            f"arrays of one sensor are not of one extent: {[list(array.shape) for array in arrays]}"
        )
    return np.concatenate([to_grid(array, height, width) for array in arrays], axis=-3)
