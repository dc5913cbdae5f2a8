from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsbackbones.eval.kmeans import kmeans, matched_classes
from rsbackbones.eval.metrics import compute_metrics
from tests.eval.blobs import blobs, several_labels


@given(st.permutations(range(5)), st.integers(0, 1000))
def test_a_permuted_clustering_is_all_right(order, seed):
    labels = np.random.default_rng(seed).integers(0, 5, 40)
    assert (matched_classes(np.array(order)[labels], labels, 5)[np.array(order)[labels]] == labels).all()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_no_matching_is_better(pairs):
    clusters, labels = np.array(pairs).T
    right = (matched_classes(clusters, labels, 4)[clusters] == labels).sum()
    assert right == max((np.array(p)[clusters] == labels).sum() for p in permutations(range(4)))


def test_separable_classes_are_all_right():
    outcome = kmeans(blobs(20), blobs(10, seed=1), classes=4)
    assert compute_metrics(outcome, "classes") == {"top1": 1, "balanced_accuracy": 1, "f1_macro": 1}
    assert outcome.details["top1_matched_on_train"] == 1
    assert sorted(outcome.details["classes_of_clusters"]) == [0, 1, 2, 3]


def test_clusters_come_from_the_training_samples_and_the_seed():
    train, test = blobs(20, spread=2), blobs(10, spread=2, seed=1)
    outcome = kmeans(train, test, classes=4, seed=3)
    assert (outcome.scores == kmeans(train, test, classes=4, seed=3).scores).all()
    one = np.arange(len(test)) < 1
    # A test set of one sample is matched to its own class, and lies in the cluster it lay in before.
    alone = kmeans(train, test.take(one), classes=4, seed=3)
    assert alone.scores.argmax(1) == test.labels[one]
    assert alone.details["inertia"] == outcome.details["inertia"]
    assert alone.details["top1_matched_on_train"] in (0.0, 1.0)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="one class per sample"):
        kmeans(several_labels(20), several_labels(9, seed=1), classes=3)
    with pytest.raises(ValueError, match=r"4 training samples cannot make 5"):
        kmeans(blobs(1), blobs(1), classes=5)
