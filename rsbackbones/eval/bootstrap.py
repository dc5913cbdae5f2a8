"""Confidence intervals of metrics: the percentile bootstrap over the test samples.

A resample draws samples with replacement, or whole groups of them: the patches of one image are similar, and
resampling them one by one would make intervals too narrow. The interval covers the choice of test images, not
that of the seed or of the training images. A resample without a class has no mean over the classes, and does
not count for that interval.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from rsbackbones.data.labelled.dataset import Array, Task
from rsbackbones.eval.metrics import (
    CHANGE_NAMES,
    Floats,
    LabelRanking,
    check_metric_name,
    compute_metrics,
    confusion,
    group_counts,
    summary,
)
from rsbackbones.eval.predictions import Predictions

# The size of a block of resamples, in numbers: it bounds the memory.
_AT_ONCE = 2**23


def interval(
    predictions: Predictions, metric: str, *, seed: int, num_resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval (low, high) of one metric, any that :func:`compute_metric` knows for the labels.

    A resample in which the metric does not exist (a label has no positive sample, or a mean over classes
    lacks a class) does not count.

    Raises:
        ValueError: there is no such metric, or ``num_resamples`` or ``level`` are out of range.
    """
    _check(num_resamples, level)
    return _percentiles(_drawn(predictions, (metric,), (), num_resamples, seed)[metric], level)


def intervals(
    predictions: Predictions,
    task: Task,
    names: Sequence[str] = (),
    *,
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return the interval of every metric of :func:`compute_metrics`, from the same resamples.

    The patches of a single image have none: it cannot be resampled.

    Raises:
        ValueError: the labels do not fit the task, or ``num_resamples`` or ``level`` are out of range.
    """
    _check(num_resamples, level)
    if predictions.groups is not None and len(np.unique(predictions.groups)) < 2:
        return {}
    names = CHANGE_NAMES if task == "change" and not names else names
    values = _drawn(predictions, tuple(compute_metrics(predictions, task, names)), names, num_resamples, seed)
    return {
        metric: _percentiles(value, level) for metric, value in values.items() if not np.isnan(value).all()
    }


def count_intervals(
    counts: Array, names: Sequence[str] = (), *, seed: int, num_resamples: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the interval of every metric of :func:`summary`, from the counts [G, K, K] of G images.

    A class that occurs in no resample has none.

    Raises:
        ValueError: ``counts`` is not [G, K, K], or ``num_resamples`` or ``level`` are out of range.
    """
    _check(num_resamples, level)
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2] or not len(counts):
        raise ValueError(f"counts {list(counts.shape)}: expected [images, K, K], at least one image")
    drawn = _drawn_counts(counts, num_resamples, np.random.default_rng(seed))
    values = summary(drawn, names, whole=counts.sum(0))
    return {name: _percentiles(value, level) for name, value in values.items() if not np.isnan(value).all()}


def _drawn(
    predictions: Predictions, metrics: Sequence[str], names: Sequence[str], num_resamples: int, seed: int
) -> dict[str, Floats]:
    """Return every metric in every resample, [resamples]."""
    generator = np.random.default_rng(seed)
    count, classes = predictions.scores.shape
    groups = predictions.groups
    units = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    if predictions.target.ndim == 2:
        ranking = LabelRanking(predictions.scores, predictions.target)
        blocks = [
            [ranking.value(metric, weights[:, units]) for metric in metrics]
            for weights in _weights(units.max() + 1, num_resamples, generator, count * classes)
        ]
        return {m: np.concatenate([block[i] for block in blocks]) for i, m in enumerate(metrics)}
    if groups is None and predictions.pixels is None:
        # n samples drawn one by one: the counts of their cells follow the multinomial distribution.
        counts = confusion(predictions.target, predictions.scores.argmax(1), classes)
        total = counts.sum()
        drawn = generator.multinomial(total, counts.ravel() / total, num_resamples)
        drawn = drawn.reshape(num_resamples, classes, classes)
        whole = counts
    else:
        of_units = group_counts(predictions, units)
        drawn, whole = _drawn_counts(of_units, num_resamples, generator), of_units.sum(0)
    values = summary(drawn, names, whole=whole)
    return {metric: values[check_metric_name(metric, values)] for metric in metrics}


def _drawn_counts(counts: Array, num_resamples: int, generator: np.random.Generator) -> Array:
    """Return the summed counts [num_resamples, K, K] of images drawn from [G, K, K]."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    blocks = [weights @ flat for weights in _weights(len(counts), num_resamples, generator, len(counts))]
    return np.concatenate(blocks).reshape(num_resamples, *counts.shape[1:])


def _weights(units: int, num_resamples: int, generator: np.random.Generator, width: int) -> Iterator[Array]:
    """Yield how often each unit is in each resample, [block, units]; ``width``: numbers per resample."""
    block = max(1, _AT_ONCE // width)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        yield generator.multinomial(units, np.full(units, 1 / units), size).astype(np.float64)


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.nanpercentile(values, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)


def _check(num_resamples: int, level: float) -> None:
    if num_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"num_resamples={num_resamples}, level={level}: expected at least 1, and 0 < level < 1"
        )
