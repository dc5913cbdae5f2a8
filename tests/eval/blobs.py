"""Features with a known answer."""

import numpy as np

from rsbackbones.eval.feature_table import FeatureTable


def blobs(per_class, *, classes=4, dim=8, spread=0.1, seed=0, shift=3.0):
    """FeatureTable around one corner per class: ``spread`` 0.1 never meet, 2 overlap."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    features = spread * rng.standard_normal((len(labels), dim)) + shift * np.eye(classes, dim)[labels]
    order = rng.permutation(len(labels))
    return FeatureTable(features[order].astype(np.float32), labels[order])


def several_labels(count, *, classes=3, dim=8, noise=0.1, seed=0):
    """FeatureTable with any number of labels; label k shows in dimension k."""
    rng = np.random.default_rng(seed)
    labels = rng.random((count, classes)) < 0.4
    features = noise * rng.standard_normal((count, dim))
    features[:, :classes] += labels
    return FeatureTable(features.astype(np.float32), labels)
