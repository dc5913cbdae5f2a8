"""Confidence intervals of metrics: the bootstrap over the test samples, percentile method.

What is drawn, with replacement and as often as there are, is a sample, or a whole group of them: the patches
of one image are alike, and drawing them one by one would make intervals too narrow. The interval says how
much the number would move with other test images; not with another seed, nor with other training images. A
draw that lacks a class has no mean over the classes, and is left out of that interval.
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

# How many numbers a block of draws may hold, so that memory does not grow with their count.
_AT_ONCE = 2**23


def interval(
    outcome: Predictions, metric: str, *, seed: int, draws: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval (low, high) of one metric, any that :func:`compute_metric` knows for the labels.

    A draw in which the metric does not exist (it lacks every positive of a label, or of a mean over classes
    one of them) is left out.

    Raises:
        ValueError: there is no such metric, or ``draws`` or ``level`` are out of range.
    """
    _check(draws, level)
    return _percentiles(_drawn(outcome, (metric,), (), draws, seed)[metric], level)


def intervals(
    outcome: Predictions,
    task: Task,
    names: Sequence[str] = (),
    *,
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return the interval of every metric that :func:`compute_metrics` gives, from the same draws.

    Raises:
        ValueError: the labels do not fit the task, or ``draws`` or ``level`` are out of range.
    """
    _check(draws, level)
    names = CHANGE_NAMES if task == "change" and not names else names
    values = _drawn(outcome, tuple(compute_metrics(outcome, task, names)), names, draws, seed)
    return {
        metric: _percentiles(value, level) for metric, value in values.items() if not np.isnan(value).all()
    }


def count_intervals(
    counts: Array, names: Sequence[str] = (), *, seed: int, draws: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the intervals of what :func:`summary` gives, from the counts [G, K, K] of G images.

    A class that occurs in no draw has none.

    Raises:
        ValueError: ``counts`` is not [G, K, K], or ``draws`` or ``level`` are out of range.
    """
    _check(draws, level)
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2] or not len(counts):
        raise ValueError(f"counts {list(counts.shape)}: expected [images, K, K], at least one image")
    drawn = _drawn_counts(counts, draws, np.random.default_rng(seed))
    values = summary(drawn, names, whole=counts.sum(0))
    return {name: _percentiles(value, level) for name, value in values.items() if not np.isnan(value).all()}


def _drawn(
    outcome: Predictions, metrics: Sequence[str], names: Sequence[str], draws: int, seed: int
) -> dict[str, Floats]:
    """Return every metric under every draw, [draws]."""
    generator = np.random.default_rng(seed)
    count, classes = outcome.scores.shape
    units = np.arange(count) if outcome.groups is None else np.unique(outcome.groups, return_inverse=True)[1]
    if outcome.target.ndim == 2:
        ranking = LabelRanking(outcome.scores, outcome.target)
        blocks = [
            [ranking.value(metric, weights[:, units]) for metric in metrics]
            for weights in _weights(units.max() + 1, draws, generator, count * classes)
        ]
        return {m: np.concatenate([block[i] for block in blocks]) for i, m in enumerate(metrics)}
    if outcome.groups is None and outcome.pixels is None:
        # n samples drawn one by one: the counts of their cells follow the multinomial distribution.
        counts = confusion(outcome.target, outcome.scores.argmax(1), classes)
        total = counts.sum()
        drawn = generator.multinomial(total, counts.ravel() / total, draws).reshape(draws, classes, classes)
        whole = counts
    else:
        of_units = group_counts(outcome, units)
        drawn, whole = _drawn_counts(of_units, draws, generator), of_units.sum(0)
    values = summary(drawn, names, whole=whole)
    return {metric: values[check_metric_name(metric, values)] for metric in metrics}


def _drawn_counts(counts: Array, draws: int, generator: np.random.Generator) -> Array:
    """Return the summed counts [draws, K, K] of images drawn from [G, K, K]."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    blocks = [weights @ flat for weights in _weights(len(counts), draws, generator, len(counts))]
    return np.concatenate(blocks).reshape(draws, *counts.shape[1:])


def _weights(units: int, draws: int, generator: np.random.Generator, width: int) -> Iterator[Array]:
    """Yield how often every unit is in a draw, [block, units]; ``width``: the numbers that a draw needs."""
    block = max(1, _AT_ONCE // width)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        yield generator.multinomial(units, np.full(units, 1 / units), size).astype(np.float64)


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.nanpercentile(values, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)


def _check(draws: int, level: float) -> None:
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws={draws}, level={level}: expected at least one draw, and 0 < level < 1")
