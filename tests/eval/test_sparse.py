import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.metrics import compute_metrics
from rsbackbones.eval.sparse import sparse
from tests.eval.blobs import blobs, several_labels


def test_a_label_that_shows_in_one_dimension_needs_one():
    outcome = sparse(several_labels(100), several_labels(50, seed=1), classes=3)
    assert outcome.details["k"] == [1, 2, 4, 8]
    assert outcome.details["f1"][0] == [1, 1, 1]
    assert [ranking[0] for ranking in outcome.details["dimensions"]] == [0, 1, 2]
    assert compute_metrics(outcome, "multilabel")["f1_macro"] == outcome.details["f1_macro"][0] == 1


def test_a_label_that_needs_two_dimensions_is_not_told_by_one():
    rng = np.random.default_rng(0)
    has = np.arange(400) % 2 == 0
    common = rng.standard_normal(400) * 5  # hides the label in each dimension, not in their difference
    x = np.stack([common + has, common - has, rng.standard_normal(400) * 0.1], axis=1).astype(np.float32)
    samples = FeatureTable(x, has.astype(int))
    outcome = sparse(samples.take(np.arange(200)), samples.take(np.arange(200, 400)), classes=2, ks=(1, 2))
    low, high = outcome.details["f1_macro"]
    assert low < 0.75
    assert high == 1


@pytest.mark.parametrize("make", [lambda n, seed: blobs(n, spread=3, seed=seed), several_labels])
def test_the_f1_of_every_class_and_k_is_that_of_a_plain_loop(make):
    train, test = make(60, seed=0), make(30, seed=1)
    classes = 4 if train.labels.ndim == 1 else 3
    outcome = sparse(train, test, classes=classes, ks=(3, 1, 8), at=3)
    scaler = StandardScaler().fit(train.features)
    for place, k in enumerate((1, 3, 8)):
        for label in range(classes):
            has = [s.labels == label if s.labels.ndim == 1 else s.labels[:, label] for s in (train, test)]
            apart = [abs(column[has[0]].mean() - column[~has[0]].mean()) for column in train.features.T]
            first = sorted(range(8), key=lambda d: -apart[d])[:k]
            model = LogisticRegression(max_iter=1000).fit(scaler.transform(train.features)[:, first], has[0])
            predicted = model.predict(scaler.transform(test.features)[:, first])
            assert outcome.details["f1"][place][label] == pytest.approx(f1_score(has[1], predicted))
    assert compute_metrics(outcome, "multilabel")["f1_macro"] == pytest.approx(outcome.details["f1_macro"][1])


def test_a_class_without_samples_has_no_probe():
    train, test = blobs(20, classes=3), blobs(10, classes=3, seed=1)
    outcome = sparse(train, test, classes=5)
    assert (outcome.scores[:, 3:] == 0).all()
    assert outcome.details["f1"][0][3:] == [None, None]


@pytest.mark.parametrize(("ks", "at"), [((0, 1), 1), ((9,), 9), ((), 1), ((2, 4), 1)])
def test_bad_numbers_of_dimensions_are_refused(ks, at):
    with pytest.raises(ValueError, match="from 1 to 8"):
        sparse(blobs(5), blobs(5, seed=1), classes=4, ks=ks, at=at)
