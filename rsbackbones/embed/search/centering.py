"""What is done to vectors before they are compared: mean and covariance of all that is searched."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array

CENTERS = ("none", "mean", "whiten")


@dataclass(frozen=True)
class Centering:
    """``mean`` [D] is subtracted, ``matrix`` [D, D] makes one variance in all directions (``None``: as
    it is); then vectors have unit length.
    """

    mean: Array
    matrix: Array | None = None

    def apply(self, vectors: Array) -> npt.NDArray[np.float32]:
        """Return vectors [N, D], prepared."""
        x = np.subtract(vectors, self.mean, dtype=np.float32)
        return unit(x if self.matrix is None else x @ self.matrix.astype(np.float32))


def fit(kind: str, parts: Iterable[tuple[Any, Array]], dim: int) -> tuple[Centering, int]:
    """Return the centering of a kind of ``CENTERS``, and of how many vectors it is.

    Args:
        kind: ``none``, ``mean`` or ``whiten``.
        parts: vectors [N, D] without NaN, with their numbers; they are read once.
        dim: their length.
    """
    count, mean, scatter = 0, np.zeros(dim), np.zeros((dim, dim))
    for _, vectors in parts:
        # Sums of parts are merged around their means, so that no large squares are subtracted.
        x, total = vectors.astype(np.float64), count + len(vectors)
        shift = x.mean(axis=0) - mean
        if kind == "whiten":
            x -= x.mean(axis=0)
            scatter += x.T @ x + np.outer(shift, shift) * (count * len(x) / total)
        mean += shift * (len(x) / total)
        count = total
    if kind == "none":
        return Centering(np.zeros(dim)), count
    if kind == "mean" or count < 2:
        return Centering(mean), count
    values, directions = np.linalg.eigh(scatter / (count - 1))
    if values.max() <= 0:  # all vectors are equal
        return Centering(mean), count
    # Directions that hardly vary would be noise alone.
    scale = 1 / np.sqrt(np.maximum(values, values.max() * 1e-4))
    return Centering(mean, (directions * scale) @ directions.T), count


def unit(x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return vectors [..., D] with length 1; zeros stay."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1), np.float32)
