"""The result of a protocol: scores of the test samples with their labels, from which metrics follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsbackbones.data.labelled.dataset import Array


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Scores of one protocol on one data set.

    Attributes:
        scores: of the test samples, [n, K] float: higher is likelier. Predicted classes are one-hot.
        target: [n] int64 (one class) or [n, K] bool (multi-label).
        groups: [n] int64: the image of a patch, so that the bootstrap resamples whole images; ``None``:
            samples are images.
        pixels: [n, K] int64: how many pixels of each class a patch has. All of them get its prediction, and
            metrics count them; ``None``: metrics count samples.
        details: other results for the record, as JSON takes them: the chosen learning rate, the metrics of
            every one (``"by_lr"``), the assignment of clusters, curves.
    """

    scores: Array
    target: Array
    groups: Array | None = None
    pixels: Array | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
