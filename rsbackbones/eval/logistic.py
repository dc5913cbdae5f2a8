"""Logistic regression on standardized features: what the statistics of the bands are judged by.

scikit-learn's, its strength of regularization chosen on folds of the training split: of every class alike, or
of whole images where samples are patches, which are alike. Also of use for a small
set, where the probes' learning rates have little to be chosen on.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from rsbackbones.data.labelled.dataset import Array
from rsbackbones.eval.feature_table import FeatureTable, validate_splits
from rsbackbones.eval.predictions import Predictions

# As many training samples suffice: patches are many and alike.
MOST = 5000
_MOST_STEPS = 1000


def logistic(
    train: FeatureTable, test: FeatureTable, *, classes: int, seed: int = 0, folds: int = 3
) -> Predictions:
    """Classify ``test``; the scores [n, K] are probabilities, 0 for a class without a training sample.

    Raises:
        ValueError: samples or labels are not as they should be.
    """
    train, test = validate_splits(train, test, classes)
    if len(train) > MOST:
        train = train.take(np.random.default_rng(seed).permutation(len(train))[:MOST])
    grid = {"C": np.logspace(-3, 3, 7)}
    scores = np.zeros((len(test), classes), np.float32)
    parts = folds_of(train, folds, seed)
    if train.task == "classes":
        search = GridSearchCV(LogisticRegression(max_iter=_MOST_STEPS), grid, cv=parts)
        fitted = _fit(search, train.features, train.labels)
        scores[:, fitted.classes_] = fitted.predict_proba(test.features)
        chosen = float(search.best_params_["C"])
    else:
        learnable = np.flatnonzero(train.labels.any(0) & ~train.labels.all(0))
        scores[:, train.labels.all(0)] = 1
        search = GridSearchCV(
            OneVsRestClassifier(LogisticRegression(max_iter=_MOST_STEPS)),
            {f"estimator__{name}": values for name, values in grid.items()},
            scoring="f1_micro", cv=parts,
        )  # fmt: skip
        fitted = _fit(search, train.features, train.labels[:, learnable])
        scores[:, learnable] = fitted.predict_proba(test.features)
        chosen = float(search.best_params_["estimator__C"])
    best = search.best_estimator_
    converged = all((one.n_iter_ < _MOST_STEPS).all() for one in getattr(best, "estimators_", [best]))
    return test.predictions(scores, details={"C": chosen, "samples": len(train), "converged": converged})


def folds_of(train: FeatureTable, folds: int, seed: int) -> list[tuple[Array, Array]]:
    """Return the (fitted, judged) samples of every fold, by number."""
    groups = None if train.groups is None else np.unique(train.groups, return_inverse=True)[1]
    if groups is not None and groups.max() + 1 >= folds:
        splitter = GroupKFold(folds, shuffle=True, random_state=seed)
        return list(splitter.split(train.features, groups=groups))
    of_class = np.bincount(train.labels)[np.unique(train.labels)] if train.task == "classes" else np.zeros(1)
    kind = StratifiedKFold if of_class.min() >= folds else KFold
    return list(kind(folds, shuffle=True, random_state=seed).split(train.features, train.labels))


def _fit(search: GridSearchCV, features: Array, labels: Array) -> Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label that a fold lacks
        # The weakest regularizations do not converge; whether the chosen one did stands in the details.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), search).fit(features, labels)
