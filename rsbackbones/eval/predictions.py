"""What a protocol gives: the scores of the test samples beside their labels, from which metrics follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsbackbones.data.labelled.dataset import Array


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Of one protocol on one set.

    Attributes:
        scores: of the test samples, [n, K] float: higher is likelier. Predicted classes are one-hot.
        target: [n] int64 (one class) or [n, K] bool (multi-label).
        groups: [n] int64: the image of a patch, so that a bootstrap draws whole images; ``None``: samples are
            images.
        pixels: [n, K] int64: how many pixels of each class a patch has. All of them get its prediction, and
            metrics count them; ``None``: metrics count samples.
        details: what else to write down, as JSON takes it: the chosen learning rate, the metrics of every one
            (``"by_lr"``), the assignment of clusters, curves.
    """

    scores: Array
    target: Array
    groups: Array | None = None
    pixels: Array | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
