"""Protocols over frozen features against scikit-learn, plain loops and known answers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")

from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
)
from sklearn.neighbors import KNeighborsClassifier

from rsbackbones.eval.bootstrap import interval, intervals
from rsbackbones.eval.kmeans import kmeans
from rsbackbones.eval.knn import knn
from rsbackbones.eval.metrics import confusion, from_confusion, metrics_of
from rsbackbones.eval.outcome import Outcome
from rsbackbones.eval.probe import probe
from rsbackbones.eval.samples import Samples
from rsbackbones.eval.sparse import sparse
from rsbackbones.eval.sweep import ProbeOptions, fit_probes

SOME_RATES = (3e-4, 2e-3, 5e-2)


def blobs(count: int, classes: int, dim: int, seed: int, apart: float = 8.0) -> Samples:
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(100).normal(size=(classes, dim))
    labels = np.arange(count) % classes
    features = apart * centres[labels] + draw.normal(size=(count, dim))
    return Samples(features.astype(np.float32), labels)


def some_scores(n: int, classes: int, seed: int) -> Outcome:
    draw = np.random.default_rng(seed)
    return Outcome(scores=draw.random((n, classes), np.float32), target=draw.integers(0, classes, n))


@pytest.mark.parametrize("protocol", ["knn", "kmeans", "linear", "mlp"])
def test_separable_blobs_are_told_apart(protocol):
    train, test = blobs(80, 4, 6, 0), blobs(40, 4, 6, 1)
    run = {"knn": lambda: knn(train, test, classes=4), "kmeans": lambda: kmeans(train, test, classes=4)}.get(
        protocol, lambda: probe(train, test, classes=4, kind=protocol, options=ProbeOptions(hidden=16))
    )
    assert metrics_of(run(), "classes")["top1"] == 1


def test_equal_votes_are_those_of_scikit_learn_and_weights_those_of_the_formula():
    train, test = blobs(90, 3, 5, 2, apart=0.7), blobs(31, 3, 5, 3, apart=0.7)
    theirs = KNeighborsClassifier(20, metric="cosine").fit(train.features, train.labels)
    ours = knn(train, test, classes=3, weighted=False)
    assert np.allclose(ours.scores, theirs.predict_proba(test.features), atol=1e-6)
    scores = np.zeros((31, 3))
    for i, query in enumerate(test.features):
        similar = np.array([
            query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in train.features
        ])  # fmt: skip
        for j in np.argsort(-similar)[:20]:
            scores[i, train.labels[j]] += math.exp(similar[j] / 0.07)
    assert np.allclose(knn(train, test, classes=3).scores, scores / scores.sum(1, keepdims=True), atol=1e-5)


def test_clusters_take_the_classes_that_fit_whatever_their_numbers():
    train, test = blobs(60, 3, 4, 4), blobs(30, 3, 4, 5)
    renamed = [Samples(s.features, np.array([2, 0, 1])[s.labels]) for s in (train, test)]
    for pair in ((train, test), renamed):
        assert (kmeans(*pair, classes=3).scores.argmax(1) == pair[1].labels).all()
    with pytest.raises(ValueError, match="one class per sample"):
        kmeans(
            Samples(train.features, np.eye(3, dtype=bool)[train.labels]),
            Samples(test.features, np.eye(3, dtype=bool)[test.labels]),
            classes=3,
        )


def alone(train: Samples, test: Samples, rate: float, options: ProbeOptions) -> np.ndarray:
    """One linear probe from zeros by torch's own layer and AdamW, all samples in every batch."""
    layer = nn.Linear(train.features.shape[1], 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    x, y = torch.from_numpy(train.features), torch.from_numpy(train.labels)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=options.weight_decay)
    steps = options.warmup + options.epochs
    for step in range(steps):
        if step < options.warmup:
            factor = (step + 1) / options.warmup
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (step - options.warmup) / (steps - options.warmup)))
        optimizer.param_groups[0]["lr"] = rate * factor
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x), y).backward()
        optimizer.step()
    return layer(torch.from_numpy(test.features)).softmax(1).detach().numpy()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_all_learning_rates_at_once_are_each_alone(kind):
    train, test = blobs(60, 3, 5, 6, apart=0.8), blobs(200, 3, 5, 7, apart=0.8)
    options = ProbeOptions(hidden=8, rates=SOME_RATES, epochs=40)
    together = fit_probes(train, classes=3, kind=kind, seed=0, options=options)
    for rate in SOME_RATES:
        single = fit_probes(
            train, classes=3, kind=kind, seed=0, options=ProbeOptions(hidden=8, rates=(rate,), epochs=40)
        )
        ours = together.scores(test.features, rate)
        assert np.allclose(ours, single.scores(test.features, rate), atol=1e-4)
        assert (ours.argmax(1) == single.scores(test.features, rate).argmax(1)).mean() > 0.99


def test_a_linear_probe_trained_long_is_that_of_torch_alone():
    """Softmax regression has one optimum under its weight decay: whatever the start, both come near it."""
    train, test = blobs(90, 3, 4, 8, apart=0.6), blobs(60, 3, 4, 9, apart=0.6)
    options = ProbeOptions(rates=(5e-2,), epochs=200)
    ours = fit_probes(train, classes=3, kind="linear", seed=0, options=options).scores(test.features, 5e-2)
    assert np.allclose(ours, alone(train, test, 5e-2, options), atol=0.02)


def test_the_learning_rate_is_chosen_without_the_test_split():
    train, val, test = (blobs(60, 3, 5, seed, apart=0.5) for seed in (10, 11, 12))
    options = ProbeOptions(rates=SOME_RATES, epochs=10)
    chosen = {
        probe(train, Samples(test.features, labels), classes=3, val=val, options=options).details["lr"]
        for labels in (test.labels, (test.labels + 1) % 3, (test.labels + 2) % 3)
    }
    assert len(chosen) == 1
    found = probe(train, test, classes=3, val=val, options=options, select="test").details
    assert found["best_on_test"]["top1"] == max(found["by_lr"].values())


def test_a_class_that_one_dimension_tells_needs_one_dimension():
    draw = np.random.default_rng(13)
    features = draw.normal(size=(300, 6)).astype(np.float32)
    labels = (np.arange(300) % 2).astype(np.int64)
    features[:, 4] += 6 * labels
    found = sparse(Samples(features[:200], labels[:200]), Samples(features[200:], labels[200:]), classes=2)
    assert all(dimensions[0] == 4 for dimensions in found.details["dimensions"])
    assert found.details["k"] == [1, 2, 4, 6]
    assert found.details["f1_macro"][0] > 0.98


def test_metrics_are_those_of_scikit_learn():
    outcome = some_scores(200, 4, 14)
    guess, values = outcome.scores.argmax(1), metrics_of(outcome, "classes")
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(outcome.target, guess))
    assert values["f1_macro"] == pytest.approx(f1_score(outcome.target, guess, average="macro"))
    counts = confusion(outcome.target, guess, 4)
    assert (counts == confusion_matrix(outcome.target, guess)).all()
    assert from_confusion(counts)["miou"] == pytest.approx(
        jaccard_score(outcome.target, guess, average="macro")
    )
    several = Outcome(scores=outcome.scores.round(1), target=np.random.default_rng(15).random((200, 4)) < 0.3)
    values = metrics_of(several, "multilabel")
    for average in ("macro", "micro"):
        expected = average_precision_score(several.target, several.scores, average=average)
        assert values[f"map_{average}"] == pytest.approx(expected)
        expected = f1_score(several.target, several.scores >= 0.5, average=average)
        assert values[f"f1_{average}"] == pytest.approx(expected)


def test_ignored_pixels_count_nowhere_and_absent_classes_have_no_iou():
    counts = confusion(np.array([0, 1, -1, 1]), np.array([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert from_confusion(counts)["miou"] == pytest.approx(0.5)


def test_intervals_of_an_accuracy_are_those_of_the_binomial():
    n, right = 400, 300
    target = np.zeros(n, np.int64)
    scores = np.eye(2, dtype=np.float32)[(np.arange(n) >= right).astype(int)]
    low, high = interval(Outcome(scores=scores, target=target), "top1", seed=0, draws=4000)
    half = 1.96 * math.sqrt(0.75 * 0.25 / n)
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)


def test_drawing_whole_images_widens_the_interval_of_patches_that_are_alike():
    draw = np.random.default_rng(16)
    right = np.repeat(draw.random(30) < 0.6, 20)
    scores = np.eye(2, dtype=np.float32)[(~right).astype(int)]
    target, groups = np.zeros(600, np.int64), np.repeat(np.arange(30), 20)
    alone, grouped = (
        intervals(Outcome(scores=scores, target=target, groups=g), "classes", seed=0)["top1"]
        for g in (None, groups)
    )
    assert grouped[1] - grouped[0] > 3 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x * np.nan, y), "NaN"),
        (lambda x, y: (x, y + 3), "integers from 0 to 2"),
        (lambda x, y: (x, y * 0), "at least two classes"),
        (lambda x, y: (x[:0], y[:0]), "no labelled sample"),
        (lambda x, y: (x[:, :2], y), "2 dimensions|dimensions"),
        (lambda x, y: (x, y * 0 - 1), "no labelled sample"),
    ],
)
def test_bad_samples_are_refused(spoil, message):
    train, test = blobs(30, 3, 4, 17), blobs(9, 3, 4, 18)
    bad = Samples(*spoil(train.features, train.labels))
    with pytest.raises(ValueError, match=message):
        knn(bad, test, classes=3, k=5)
