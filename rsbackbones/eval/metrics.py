"""Metrics, from scores beside labels or from confusion counts; all are fractions, 0 to 1.

Counts are [K, K], rows the labels and columns the predictions, and add up over images: the mean IoU of a set
is that of the sum, not the mean of its images'. A class that occurs neither among the labels nor among the
predictions has no IoU and no F1 and is left out of their means; one that has no positive label has no recall
and no average precision, and is left out of those. Shapes: n samples, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.dataset import IGNORED, Array, Task
from rsbackbones.eval.predictions import Predictions

Floats = npt.NDArray[np.float64]
# What is written down of every task; pixels and change also have IoU and F1 by class, and where a class has
# that name, the mean IoU of all but the background.
METRICS: dict[Task, tuple[str, ...]] = {
    "classes": ("top1", "balanced_accuracy", "f1_macro"),
    "multilabel": ("map_micro", "map_macro", "f1_micro", "f1_macro"),
    "pixels": ("miou", "pixel_accuracy", "f1_macro"),
    "change": ("miou", "pixel_accuracy", "f1_macro"),
}
CHANGE_NAMES = ("unchanged", "change")
BACKGROUND, FOREGROUND = "background", "miou_foreground"


def primary_metric(task: Task, classes: Sequence[str | int]) -> str:
    """Return the metric of a task that tables show and selections use: the first of :data:`METRICS`.

    Of several labels the micro average, as SatMAE's code of BigEarthNet has it; CROMA and SeaMo, who follow
    it, do not say. Of change the F1 of the change class, the second.
    """
    return f"f1_{classes[1]}" if task == "change" else METRICS[task][0]


def compute_metrics(predictions: Predictions, task: Task, names: Sequence[str] = ()) -> dict[str, float]:
    """Return the metrics of a task: those of :data:`METRICS`, and for pixels IoU and F1 by class.

    ``classes``: top-1 accuracy, balanced accuracy (mean recall), macro F1. ``multilabel``: mean average
    precision, macro (mean over the classes) and micro (all scores in one ranking), and F1 of the scores from
    0.5 on. ``pixels`` and ``change``: as :func:`from_confusion`.

    Raises:
        ValueError: the scores do not fit the labels or the task.
    """
    multilabel = _validate(predictions).target.ndim == 2
    if multilabel != (task == "multilabel"):
        found = "several labels [n, K]" if multilabel else "one label [n]"
        raise ValueError(f"the task {task} does not fit samples of {found}")
    if multilabel:
        ranking = LabelRanking(predictions.scores, predictions.target)
        return {name: float(ranking.value(name)) for name in METRICS[task]}
    counts = _counts_of(predictions)
    if task != "classes":
        return from_confusion(counts, CHANGE_NAMES if task == "change" and not names else names)
    values = summary(counts)
    return {name: float(values[name]) for name in METRICS[task]}


def compute_metric(predictions: Predictions, metric: str) -> float:
    """Return one metric, any of those that the labels allow, e.g. ``top1``, ``miou``, ``iou_3``,
    ``map_macro``.

    Raises:
        ValueError: there is no such metric for these labels.
    """
    if _validate(predictions).target.ndim == 2:
        return float(LabelRanking(predictions.scores, predictions.target).value(metric))
    values = summary(_counts_of(predictions))
    return float(values[check_metric_name(metric, values)])


def confusion(target: Array, predicted: Array, classes: int) -> npt.NDArray[np.int64]:
    """Return the counts [K, K] of labels (rows) and predictions (columns), of any shape; label -1 counts
    nowhere.

    Raises:
        ValueError: the shapes differ, or a label or a prediction is no class.
    """
    target, predicted = np.asarray(target), np.asarray(predicted)
    if target.shape != predicted.shape:
        raise ValueError(
            f"labels {list(target.shape)} and predictions {list(predicted.shape)} differ in shape"
        )
    counted = target != IGNORED
    target, predicted = target[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for what, values in (("label", target), ("prediction", predicted)):
        if values.size and ((values < 0) | (values >= classes)).any():
            wrong = values[(values < 0) | (values >= classes)][0]
            raise ValueError(
                f"{what} {wrong}: with {classes} classes they go from 0 to {classes - 1}"
                + (f", and {IGNORED} is ignored" if what == "label" else "")
            )
    return np.bincount(target * classes + predicted, minlength=classes**2).reshape(classes, classes)


def group_counts(predictions: Predictions, units: Array) -> npt.NDArray[np.int64]:
    """Return the counts [G, K, K] of the samples, or pixels, of every unit; ``units`` [n] numbers them."""
    classes, predicted = predictions.scores.shape[1], predictions.scores.argmax(1)
    many = int(units.max()) + 1
    if predictions.pixels is not None:
        counts = np.zeros((many, classes, classes), np.int64)
        np.add.at(counts.transpose(0, 2, 1), (units, predicted), predictions.pixels)
        return counts
    counted = predictions.target != IGNORED
    cells = (units * classes + predictions.target) * classes + predicted
    return np.bincount(cells[counted], minlength=many * classes**2).reshape(many, classes, classes)


def from_confusion(counts: Array, names: Sequence[str] = ()) -> dict[str, float]:
    """Return ``miou``, ``pixel_accuracy``, ``f1_macro``, and by class ``iou_NAME`` and ``f1_NAME``.

    If a class is called ``background``, also ``miou_foreground``: its pixels count, as those of any class,
    but it is left out of the mean over the classes. ``names`` default to the numbers of the classes. A class
    that does not occur has no entries.

    Raises:
        ValueError: ``counts`` is not [K, K], is empty, or does not fit the names.
    """
    if np.ndim(counts) != 2 or counts.shape[0] != counts.shape[1] or (names and len(names) != len(counts)):
        raise ValueError(
            f"confusion counts {list(np.shape(counts))}: expected [K, K]"
            + f", K = {len(names)}" * bool(names)
        )
    if not counts.sum():
        raise ValueError("no sample was counted: every label is ignored, or there are none")
    values = summary(counts, names)
    more = (name for name in values if name == FOREGROUND or name.startswith(("iou_", "f1_")))
    chosen = [*METRICS["pixels"], *more]
    return {name: float(values[name]) for name in dict.fromkeys(chosen) if not np.isnan(values[name])}


def summary(counts: Array, names: Sequence[str] = (), *, whole: Array | None = None) -> dict[str, Floats]:
    """Return every metric of counts [..., K, K], each [...]: NaN where it does not exist.

    Where ``counts`` are drawn from ``whole`` [K, K], a mean over classes exists only if all of its classes
    do: that over fewer would be of another quantity.
    """
    counts = np.asarray(counts, np.float64)
    by_class = _by_class(counts)
    of_whole = {} if whole is None else _by_class(np.asarray(whole, np.float64))
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    accuracy = ratio(hits.sum(-1), counts.sum((-2, -1)))
    values = {"top1": accuracy, "pixel_accuracy": accuracy}
    for metric, name in (("balanced_accuracy", "recall"), ("f1_macro", "f1"), ("miou", "iou")):
        values[metric] = mean_of_existing(by_class[name], of_whole.get(name))
    if BACKGROUND in names:
        rest = [number for number, name in enumerate(names) if name != BACKGROUND]
        foreground = of_whole["iou"][..., rest] if of_whole else None
        values[FOREGROUND] = mean_of_existing(by_class["iou"][..., rest], foreground)
    for number in range(counts.shape[-1]):
        name = str(names[number] if names else number)
        values |= {f"iou_{name}": by_class["iou"][..., number], f"f1_{name}": by_class["f1"][..., number]}
    return values


def _by_class(counts: Floats) -> dict[str, Floats]:
    """Of counts [..., K, K], each [..., K]."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    labelled, predicted = counts.sum(-1), counts.sum(-2)
    return {
        "recall": ratio(hits, labelled),
        "f1": ratio(2 * hits, labelled + predicted),
        "iou": ratio(hits, labelled + predicted - hits),
    }


class LabelRanking:
    """Scores of several labels per sample, ranked once, their metrics under any weights of the samples.

    Average precision is the sum of precision times the step of recall over the distinct scores, not
    interpolated, as scikit-learn's and torchmetrics'. ``scores`` [n, K] are probabilities, ``target`` is [n,
    K] bool.
    """

    def __init__(self, scores: Array, target: Array) -> None:
        self._hits, self._scores = target.astype(bool), scores
        if not self._hits.any():
            raise ValueError("no sample has any label: there is nothing to rank")
        if scores.min() < 0 or scores.max() > 1:
            raise ValueError(
                f"scores from {scores.min():.3g} to {scores.max():.3g}: those of labels are probabilities"
            )
        self._orders: dict[int | None, tuple[Array, Array, Array]] = {}

    def value(self, metric: str, weights: Array | None = None) -> Floats:
        """Return a metric under weights [..., n] (default: all 1), shape [...]; as :func:`summary` of draws,
        a mean over classes exists under weights only if all of its classes do.

        Raises:
            ValueError: there is no such metric.
        """
        check_metric_name(metric, METRICS["multilabel"])
        ones = np.ones(len(self._hits))
        weights = np.asarray(ones if weights is None else weights, np.float64)
        if metric == "map_micro":
            return self._average_precision(None, weights)
        if metric == "map_macro":
            labels = range(self._hits.shape[1])
            drawn, whole = (
                np.stack([self._average_precision(k, w) for k in labels], axis=-1) for w in (weights, ones)
            )
            return mean_of_existing(drawn, whole)
        chosen = self._scores >= 0.5
        both, either = weights @ (self._hits & chosen), weights @ (self._hits.astype(int) + chosen)
        if metric == "f1_micro":
            return ratio(2 * both.sum(-1), either.sum(-1))
        count = self._hits.sum(0) + chosen.sum(0)
        return mean_of_existing(ratio(2 * both, either), ratio(count, count))

    def _average_precision(self, label: int | None, weights: Array) -> Floats:
        """Of one label, or of all together, whose ranking is that of n * K scores."""
        if label not in self._orders:
            scores = self._scores.ravel() if label is None else self._scores[:, label]
            hits = self._hits.ravel() if label is None else self._hits[:, label]
            order = np.argsort(-scores, kind="stable")
            # Where a run of equal scores ends: a threshold takes all of it or nothing.
            ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
            samples = order // self._hits.shape[1] if label is None else order
            self._orders[label] = samples, hits[order], ends
        samples, hits, ends = self._orders[label]
        ranked = weights[..., samples]
        found = np.cumsum(ranked * hits, axis=-1)[..., ends]
        taken = np.cumsum(ranked, axis=-1)[..., ends]
        steps = np.diff(found, axis=-1, prepend=0)
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        return ratio((steps * precision).sum(-1), found[..., -1])


def ratio(above: Array, below: Array) -> Floats:
    """Divide, NaN where there is nothing below."""
    out: Floats = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=out, where=np.asarray(below) > 0)
    return out


def mean_of_existing(values: Floats, whole: Floats | None = None) -> Floats:
    """Return the mean over the last axis of what is not NaN; NaN where that is nothing.

    With ``whole``, one number for each of the last axis, NaN also where what exists there is missing.
    """
    there = ~np.isnan(values)
    mean = ratio(np.where(there, values, 0).sum(-1), there.sum(-1))
    if whole is not None:
        mean = np.where((there | np.isnan(whole)).all(-1), mean, np.nan)
    return mean


def check_metric_name(metric: str, those: Any) -> str:
    """Return the name of a metric if it is one of those.

    Raises:
        ValueError: it is not.
    """
    if metric not in those:
        raise ValueError(f"no metric {metric!r} for these labels; there are {', '.join(those)}")
    return metric


def _counts_of(predictions: Predictions) -> npt.NDArray[np.int64]:
    if predictions.pixels is not None:
        one_group = np.zeros(len(predictions.scores), np.int64)
        counts: npt.NDArray[np.int64] = group_counts(predictions, one_group)[0]
        return counts
    return confusion(predictions.target, predictions.scores.argmax(1), predictions.scores.shape[1])


def _validate(predictions: Predictions) -> Predictions:
    scores, target = predictions.scores, predictions.target
    fits = target.shape == scores.shape if target.ndim == 2 else target.shape == scores.shape[:1]
    if scores.ndim != 2 or not fits or not len(scores):
        raise ValueError(
            f"scores {list(scores.shape)} and labels {list(target.shape)}: expected [n, K], and [n] or [n, K]"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    return predictions
