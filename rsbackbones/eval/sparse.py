"""Sparse probes: how well a class is told from the others by a few dimensions of the features.

CROMA (appendix A.4.2), after Gurnee et al. 2023: for every class, dimensions are ranked by the absolute
difference between the mean features of the training samples with and without it, and a linear probe tells the
two apart on the first k of them, for k = 1 ... D; F1 on the evaluation samples. Here k is a power of two, or
D, unless others are asked for (``ks="all"`` is the paper's): with 768 dimensions that is 11 probes of a class
instead of 768. The probe is scikit-learn's
logistic regression (C = 1, on standardized dimensions; the ranking is of the features as they are, as in the
paper), which finds its optimum without a learning rate. The paper names no trainer for it; classes x k AdamW
probes under 27 learning rates cost more and come no closer to that optimum. FeatureTable are not weighted by
class.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression

from rsbackbones.data.labelled.dataset import Array
from rsbackbones.eval.feature_table import FeatureTable, validate_splits
from rsbackbones.eval.metrics import mean_of_existing, ratio
from rsbackbones.eval.predictions import Predictions


def sparse(
    train: FeatureTable,
    test: FeatureTable,
    *,
    classes: int,
    ks: Sequence[int] | Literal["all"] | None = None,
    at: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Probe every class on its first k dimensions, for every k.

    A class that all training samples have, or none, has no probe: its scores are 1 or 0. F1 does not exist
    for a class that neither occurs in ``test`` nor is predicted.

    Args:
        train: what dimensions are ranked and probes trained on.
        test: what they are scored on.
        classes: K.
        ks: numbers of dimensions, or ``all`` from 1 to D; default: the powers of two up to D, and D.
        at: of these, the one whose scores the predictions carries.
        progress: called with the classes done and all.

    Returns:
        As of several labels, for each class its own: the probabilities [n, K] at ``at`` dimensions beside
        [n, K] bool. In the details ``k``, ``f1`` (by k a list over the classes, ``None`` where it does not
        exist), ``f1_macro`` by k (mean of those that do), and by class the first ten ``dimensions`` of the
        ranking.

    Raises:
        ValueError: samples or labels are not as they should be, or a k is not from 1 to D.
    """
    train, test = validate_splits(train, test, classes)
    dim = train.features.shape[1]
    if ks is None:
        ks = [*(2**i for i in range(dim.bit_length()) if 2**i < dim), dim]
    chosen = sorted(set(range(1, dim + 1) if ks == "all" else ks))
    if not chosen or chosen[0] < 1 or chosen[-1] > dim or at not in chosen:
        raise ValueError(
            f"ks={chosen}, at={at}: expected numbers of dimensions from 1 to {dim}, and one of them"
        )
    has = train.labels if train.labels.ndim == 2 else np.eye(classes, dtype=bool)[train.labels]
    target = test.labels if test.labels.ndim == 2 else np.eye(classes, dtype=bool)[test.labels]
    deviation = train.features.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1)
    mean = train.features.mean(axis=0)
    x, queries = (train.features - mean) / scale, (test.features - mean) / scale
    scores = np.empty((len(chosen), len(test), classes), np.float32)
    rankings = []
    for label in range(classes):
        ranking = rank_dimensions(train.features, has[:, label])
        rankings.append(ranking[:10].tolist())
        for place, k in enumerate(chosen):
            if has[:, label].all() or not has[:, label].any():
                scores[place, :, label] = has[0, label]
                continue
            first = ranking[:k]
            fitted = LogisticRegression(max_iter=1000).fit(x[:, first], has[:, label])
            scores[place, :, label] = fitted.predict_proba(queries[:, first])[:, 1]
        if progress is not None:
            progress(label + 1, classes)
    found = scores >= 0.5
    f1 = ratio(2 * (found & target).sum(axis=1), found.sum(axis=1) + target.sum(axis=0))  # [ks, K]
    return Predictions(
        scores=scores[chosen.index(at)],
        target=target,
        groups=test.groups,
        details={
            "k": chosen,
            "at": at,
            "f1": [[None if np.isnan(value) else float(value) for value in values] for values in f1],
            "f1_macro": mean_of_existing(f1).tolist(),
            "dimensions": rankings,
        },
    )


def rank_dimensions(features: Array, has: Array) -> Array:
    """Return all dimensions, that of the largest absolute difference of the class means first."""
    if has.all() or not has.any():
        return np.arange(features.shape[1])
    difference = features[has].mean(axis=0, dtype=np.float64) - features[~has].mean(axis=0, dtype=np.float64)
    return np.argsort(-np.abs(difference), kind="stable")
