import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.logistic import folds_of, logistic
from rsbackbones.eval.metrics import compute_metrics
from tests.eval.blobs import blobs, several_labels


def test_it_is_scikit_learns_at_the_chosen_strength_whatever_the_scale():
    train, test = blobs(40, spread=1.5), blobs(20, spread=1.5, seed=1)
    scales = 10.0 ** np.arange(train.features.shape[1])
    scaled = [FeatureTable(s.features * scales, s.labels) for s in (train, test)]
    found = logistic(*scaled, classes=4)
    scaler = StandardScaler().fit(train.features)
    alone = LogisticRegression(C=found.details["C"], max_iter=1000)
    alone.fit(scaler.transform(train.features), train.labels)
    expected = alone.predict_proba(scaler.transform(test.features))
    assert np.allclose(found.scores, expected, atol=1e-3)


def test_several_labels_that_show_are_told():
    found = logistic(several_labels(80), several_labels(40, seed=1), classes=3)
    assert compute_metrics(found, "multilabel")["map_macro"] == 1


def test_a_class_without_samples_has_no_probability():
    train = blobs(20, classes=3)
    found = logistic(train, blobs(10, classes=3, seed=1), classes=4)
    assert (found.scores[:, 3] == 0).all()
    assert found.scores.sum(1) == pytest.approx(1)


def test_patches_of_one_image_are_not_in_two_folds():
    samples = blobs(60)
    groups = np.random.default_rng(0).integers(100, 130, len(samples))
    judged = []
    for fitted, held in folds_of(FeatureTable(samples.features, samples.labels, groups), 3, 0):
        assert not set(groups[fitted]) & set(groups[held])
        judged += held.tolist()
    assert sorted(judged) == list(range(len(samples)))
