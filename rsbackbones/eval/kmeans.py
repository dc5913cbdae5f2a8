"""K-means clusters of the training features as classes of the test samples.

CROMA (appendix A.4.2), after Gwilliam and Shrivastava 2022: K-means with K = the number of classes, fitted on
the training features as they are (not scaled to unit length, as in the authors' code), k-means++ with 10
restarts, test samples to their clusters, clusters to classes by the Hungarian algorithm. On whose labels it
matches the paper leaves open; "we assign validation samples to clusters and assign clusters to classes" reads
as those of the evaluation samples, as is common, and is what the scores follow. That uses test labels: the
accuracy of a matching on the training labels stands beside it in the details, ``top1_matched_on_train``.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from rsbackbones.data.labelled.dataset import Array
from rsbackbones.eval.feature_table import FeatureTable, validate_splits
from rsbackbones.eval.metrics import confusion
from rsbackbones.eval.predictions import Predictions


def kmeans(
    train: FeatureTable, test: FeatureTable, *, classes: int, restarts: int = 10, seed: int = 0
) -> Predictions:
    """Cluster ``train`` and classify ``test`` so; the scores [n, K] are one-hot.

    ``details["classes_of_clusters"]`` is the class of every cluster.

    Raises:
        ValueError: samples or labels are not as they should be, samples have several labels, or there are
            fewer training samples than classes.
    """
    train, test = validate_splits(train, test, classes)
    if train.task == "multilabel":
        raise ValueError("K-means needs one class per sample: a cluster stands for one class")
    if len(train) < classes:
        raise ValueError(f"{len(train)} training samples cannot make {classes} clusters, one for each class")
    model = KMeans(classes, init="k-means++", n_init=restarts, random_state=seed).fit(train.features)
    clusters = model.predict(test.features)
    matched = matched_classes(clusters, test.labels, classes)
    on_train = matched_classes(model.labels_, train.labels, classes)
    return test.predictions(
        np.eye(classes, dtype=np.float32)[matched[clusters]],
        details={
            "classes_of_clusters": matched.tolist(),
            "matched_on": "test labels",
            "top1_matched_on_train": float((on_train[clusters] == test.labels).mean()),
            "inertia": float(model.inertia_),
            "seed": seed,
        },
    )


def matched_classes(clusters: Array, labels: Array, classes: int) -> Array:
    """Return the class of every cluster, [K], one each, under which most of the samples are right."""
    counts = confusion(labels, clusters, classes)
    of_class, cluster = linear_sum_assignment(counts, maximize=True)
    matched = np.empty(classes, np.int64)
    matched[cluster] = of_class
    return matched
