import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from rsbackbones.eval import knn as module
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.knn import knn
from rsbackbones.eval.metrics import compute_metrics
from tests.eval.blobs import blobs, several_labels


def plain(train, test, classes, k, temperature):
    """Scores of every test sample, one neighbor at a time."""
    labels = train.labels if train.labels.ndim == 2 else np.eye(classes)[train.labels]
    out = []
    for query in test.features.astype(np.float64):
        cosines = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in train.features]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        weights = [np.exp(cosines[i] / temperature) for i in nearest]
        out.append(sum(w * labels[i] for w, i in zip(weights, nearest, strict=True)) / sum(weights))
    return np.array(out)


@pytest.mark.parametrize("make", [lambda n, seed: blobs(n, spread=2, seed=seed), several_labels])
def test_the_scores_are_those_of_a_plain_loop(make):
    train, test = make(20, seed=0), make(9, seed=1)
    classes = 4 if train.labels.ndim == 1 else 3
    outcome = knn(train, test, classes=classes, k=7)
    assert np.allclose(outcome.scores, plain(train, test, classes, 7, 0.07), atol=1e-5)
    assert (outcome.target == test.labels).all()


def test_a_majority_vote_is_scikit_learns():
    train, test = blobs(30, spread=2, seed=0), blobs(30, spread=2, seed=1)
    theirs = KNeighborsClassifier(5, metric="cosine").fit(train.features, train.labels)
    ours = knn(train, test, classes=4, k=5, weighted=False)
    assert np.allclose(ours.scores, theirs.predict_proba(test.features), atol=1e-6)
    assert (ours.scores.argmax(1) == theirs.predict(test.features)).all()


def test_blocks_change_nothing(monkeypatch):
    train, test = blobs(20, spread=2, seed=0), blobs(9, spread=2, seed=1)
    whole = knn(train, test, classes=4).scores
    monkeypatch.setattr(module, "_AT_ONCE", 1000)  # several blocks, the last one shorter
    assert np.allclose(knn(train, test, classes=4).scores, whole, atol=1e-6)


def test_separable_classes_are_all_right():
    assert compute_metrics(knn(blobs(20), blobs(10, seed=1), classes=4), "classes")["top1"] == 1


def test_ignored_samples_are_neither_asked_nor_asked_for():
    train, test = blobs(20), blobs(10, seed=1)
    hidden = train.labels.copy()
    hidden[::2] = -1
    outcome = knn(FeatureTable(train.features, hidden), test, classes=4, k=3)
    kept = knn(train.take(hidden >= 0), test, classes=4, k=3)
    assert (outcome.scores == kept.scores).all()
    assert len(knn(train, FeatureTable(train.features, hidden), classes=4).target) == (hidden >= 0).sum()


def test_bad_options_are_refused():
    train, test = blobs(3), blobs(3, seed=1)
    with pytest.raises(ValueError, match=r"k=20 .* 12 training"):
        knn(train, test, classes=4)
    with pytest.raises(ValueError, match="temperature"):
        knn(train, test, classes=4, k=3, temperature=0)


def with_(samples, **changed):
    values = {"features": samples.features, "labels": samples.labels, "groups": samples.groups}
    return FeatureTable(**(values | changed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tr, te: (with_(tr, labels=np.zeros_like(tr.labels)), te), "at least two classes"),
        (lambda tr, te: (with_(tr, labels=tr.labels + 1), te), "train: int64 labels from 1 to 4; with 4"),
        (lambda tr, te: (tr, with_(te, labels=te.labels - 2)), "test: int64 labels from -2"),
        (lambda tr, te: (tr, with_(te, labels=np.full_like(te.labels, -1))), "test split holds no"),
        (lambda tr, te: (tr.take(np.arange(0)), te), "train split holds no"),
        (lambda tr, te: (with_(tr, labels=tr.labels * 1.0), te), "integers"),
        (lambda tr, te: (with_(tr, labels=tr.labels[:-1]), te), r"train: features \[12, 8\], labels \[11\]"),
        (lambda tr, te: (tr, with_(te, features=te.features[:, :5])), "5 dimensions .* and 8"),
        (lambda tr, te: (tr, with_(te, groups=np.zeros(2, int))), "groups"),
        (lambda tr, te: (tr, with_(te, labels=np.eye(4, dtype=bool)[te.labels])), "several"),
        (lambda tr, te: (tr, with_(te, labels=np.eye(5, dtype=bool)[te.labels])), r"\[n, 4\]"),
    ],
)
def test_bad_samples_are_refused_by_name(change, message):
    train, test = change(blobs(3), blobs(3, seed=1))
    with pytest.raises(ValueError, match=message):
        knn(train, test, classes=4, k=2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(value):
    train, test = blobs(3), blobs(3, seed=1)
    test.features[5, 2] = value
    with pytest.raises(ValueError, match=r"test: 1 of 12 .* number 5"):
        knn(train, test, classes=4, k=2)
