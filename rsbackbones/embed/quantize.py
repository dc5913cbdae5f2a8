"""Features in 8 bits: the rules, their inverse, and what they lose.

==============  =============================================================================================
``per-band``    q = clip(rint((x - offset_b) / scale_b), -127, 127); scale and offset of a band from a sample
``per-vector``  q = rint(x / s), s = max|x| / 127 of each vector, kept beside it (the form of TESSERA)
``alphaearth``  x of unit length, q = rint(127.5 sign(x) sqrt|x|), clipped (AlphaEarth Foundations, 2025)
``none``        x as float32, ``float16`` in half precision
==============  =============================================================================================

The integer -128 marks a cell without data. A rule that loses the norm (``alphaearth``), or has one scale for
all bands (``per-vector``), changes neighbors where a channel of a ViT is much larger than the others.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rsbackbones.data.rasters import Array

RULES = ("per-band", "per-vector", "alphaearth", "none", "float16")
FILL = -128
_LARGEST = 127
# The range of a band holds the sample but for this share at either end.
_TAIL = 1e-4
# Neighbors are compared among so many vectors of the sample.
_COMPARED, _NEIGHBORS = 2000, 10


@dataclass(frozen=True)
class Quantization:
    """A rule, and the numbers of ``per-band``: scale and offset of each band."""

    rule: str
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    @staticmethod
    def of_sample(rule: str, sample: Array) -> "Quantization":
        """Return a rule with its numbers from a sample of features [N, D] without NaN.

        Raises:
            ValueError: the rule is unknown.
        """
        check_rule(rule)
        if rule != "per-band":
            return Quantization(rule)
        low, high = np.quantile(sample.astype(np.float64), (_TAIL, 1 - _TAIL), axis=0)
        span = (high - low) / (2 * _LARGEST)
        smallest = np.maximum(np.abs(high), 1e-6) * 1e-6  # a band of one value
        # As float32, in which they are stored: what is written is decoded by the same numbers.
        scale, offset = (x.astype(np.float32) for x in (np.maximum(span, smallest), (low + high) / 2))
        return Quantization(rule, tuple(map(float, scale)), tuple(map(float, offset)))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored values."""
        return np.dtype({"none": "float32", "float16": "float16"}.get(self.rule, "int8"))

    @property
    def fill(self) -> float:
        """The stored value of cells without data."""
        return FILL if self.dtype == np.int8 else float("nan")

    @property
    def has_scales(self) -> bool:
        """Whether every vector has a scale of its own."""
        return self.rule == "per-vector"

    def encode(self, x: Array) -> tuple[Array, npt.NDArray[np.float32] | None, int]:
        """Return stored values, the scales of vectors if the rule has them, and how many values were clipped.

        Args:
            x: features [..., D] float32; a vector with a NaN has no data.
        """
        if self.dtype != np.int8:
            stored = x.astype(self.dtype)
            clipped = int((np.isinf(stored) & np.isfinite(x)).sum())
            return stored, None, clipped
        missing = np.isnan(x).any(axis=-1)
        scales, q = None, x
        if self.rule == "per-band":
            q = (x - np.array(self.offset, np.float32)) / np.array(self.scale, np.float32)
        elif self.rule == "per-vector":
            scales = (np.abs(x).max(axis=-1) / np.float32(_LARGEST)).astype(np.float32)
            q = x / np.where(scales > 0, scales, 1)[..., None]
        else:
            norm = np.linalg.norm(x, axis=-1, keepdims=True)
            unit = x / np.where(norm > 0, norm, 1)
            q = np.float32(127.5) * np.sign(unit) * np.sqrt(np.abs(unit))
        np.rint(q, out=q)
        q[missing] = 0
        outside = int((np.abs(q) > _LARGEST).sum())
        stored = np.clip(q, -_LARGEST, _LARGEST).astype(np.int8)
        stored[missing] = FILL
        return stored, scales, outside

    def decode(self, q: Array, scales: Array | None = None) -> npt.NDArray[np.float32]:
        """Return features [..., D] of stored values; NaN where there is no data."""
        x = q.astype(np.float32)
        if self.dtype != np.int8:
            return x
        if self.rule == "per-band":
            x = x * np.array(self.scale, np.float32) + np.array(self.offset, np.float32)
        elif self.rule == "per-vector":
            assert scales is not None
            x = x * scales[..., None]
        else:
            x = np.sign(x) * np.square(x / np.float32(127.5))
        x[(q == FILL).any(axis=-1)] = np.nan
        return x

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON takes it; :meth:`from_json` reads it."""
        return {"rule": self.rule, "scale": list(self.scale), "offset": list(self.offset)}

    @staticmethod
    def from_json(stated: dict[str, Any]) -> "Quantization":
        """Return what :meth:`as_json` gave."""
        return Quantization(stated["rule"], tuple(stated["scale"]), tuple(stated["offset"]))

    def measure(self, sample: Array) -> dict[str, float]:
        """Return what the rule loses on a sample [N, D] without NaN.

        ``cosine_error_p99``: the 99th percentile of 1 - cosine of a vector and its decoded one.
        ``neighbor_agreement``: the share of the 10 nearest neighbors (Euclidean) that stay.
        ``clipped_share``: of values.
        """
        stored, scales, clipped = self.encode(sample)
        decoded = self.decode(stored, scales)
        x, y = (torch.from_numpy(np.ascontiguousarray(v)).double() for v in (sample, decoded))
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=1)
        step = max(1, len(x) // _COMPARED)
        found = []
        for vectors in (x[::step], y[::step]):
            distances = torch.cdist(vectors, vectors).fill_diagonal_(float("inf"))
            count = min(_NEIGHBORS, len(vectors) - 1)
            found.append(distances.topk(count, largest=False).indices if count else None)
        agreement = 1.0
        if found[0] is not None and found[1] is not None:
            agreement = float((found[0][:, :, None] == found[1][:, None, :]).any(2).double().mean())
        return {
            "cosine_error_p99": float(torch.quantile(1 - cosine, 0.99)),
            "neighbor_agreement": agreement,
            "clipped_share": clipped / sample.size,
        }


def check_rule(rule: str) -> None:
    """Refuse an unknown rule.

    Raises:
        ValueError: it is none of ``RULES``.
    """
    if rule not in RULES:
        raise ValueError(f"quantize must be one of {', '.join(RULES)}, got {rule!r}")
